"""Puts the pictures of the two training programs below one another: the first picture of the README.

python examples/readme_picture.py amp_run/spectrum.png out/result.png docs/images/results.webp
"""

from __future__ import annotations

import sys

from PIL import Image

WIDTH_PX, GAP_PX = 1600, 40


def main(*paths: str) -> None:
    *sources, target = paths
    pictures = [Image.open(source).convert("RGB") for source in sources]
    pictures = [
        picture.resize((WIDTH_PX, WIDTH_PX * picture.height // picture.width)) for picture in pictures
    ]
    height = sum(picture.height + GAP_PX for picture in pictures) - GAP_PX
    sheet = Image.new("RGB", (WIDTH_PX, height), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + GAP_PX
    sheet.save(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
