"""PNG files of palette, RGB and RGBA pixels, and the colours of numbers. Pure; NumPy and zlib only.

Format: W3C "Portable Network Graphics Specification (Third Edition)", sections 5, 11.2 and 11.3.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE, _RGB, _RGBA = 3, 2, 6  # colour types

# Every 17th of the 256 colours of viridis, by Smith and van der Walt (2015), CC0: perceptually uniform,
# monotone in lightness. Between them colours are interpolated: no channel is off by more than 7 of 255.
_VIRIDIS = bytes.fromhex(
    "440154481a6c472f7d41448739568c31688e2a788e23888e1f988b22a88435b77954c5687ad151a5db36d2e21bfde725"
)
TRANSPARENT = 255  # the index of what has no colour
COLOURS = 255


def _palette() -> NDArray[np.uint8]:
    anchors = np.frombuffer(_VIRIDIS, np.uint8).reshape(-1, 3)
    places = np.linspace(0, len(anchors) - 1, COLOURS)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


VIRIDIS = _palette()  # [COLOURS, 3]


def coloured(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Indices of colours [rows, columns], darkest for the least; what is not finite is TRANSPARENT.

    One in a hundred values may lie beyond either end, so that a few outliers do not take all colours.
    """
    finite = np.isfinite(values)
    indices = np.full(values.shape, TRANSPARENT, np.uint8)
    if finite.any():
        low, high = np.percentile(values[finite], (1, 99))
        scale = max(float(high / 2 - low / 2), np.finfo(np.float64).tiny)  # halves: no overflow
        place = (values[finite] / 2 - low / 2) / scale
        indices[finite] = np.round(np.clip(place, 0, 1) * (COLOURS - 1)).astype(np.uint8)
    return indices


def png(pixels: NDArray[np.uint8]) -> bytes:
    """``pixels``: indices of colours [rows, columns], or RGB or RGBA [rows, columns, 3 or 4]."""
    rows, columns = pixels.shape[:2]
    kind = _PALETTE if pixels.ndim == 2 else _RGBA if pixels.shape[2] == 4 else _RGB
    header = struct.pack(">IIBBBBB", columns, rows, 8, kind, 0, 0, 0)
    lines = np.zeros((rows, 1 + pixels.nbytes // rows), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = pixels.reshape(rows, -1)
    chunks = [_chunk(b"IHDR", header)]
    if kind == _PALETTE:
        opaque = b"\xff" * COLOURS
        chunks += [_chunk(b"PLTE", VIRIDIS.tobytes() + b"\0\0\0"), _chunk(b"tRNS", opaque + b"\0")]
    chunks += [_chunk(b"IDAT", zlib.compress(lines.tobytes(), 6)), _chunk(b"IEND", b"")]
    return _SIGNATURE + b"".join(chunks)


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
