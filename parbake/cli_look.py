"""``parbake inspect --plot`` and ``--html``: pictures and reports as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from parbake import human
from parbake.cli_output import print_json
from parbake.errors import ParbakeError, RecipeError

if TYPE_CHECKING:
    from parbake.store.store import Store

_PAGES = ("html", "htm")


def write_pictures(
    store: Store,
    plot: Path | None,
    html: Path | None,
    shown: tuple[int | None, str | None],
    as_json: bool,
) -> bool:
    """Write the picture of a sample and the report, whole or not at all, over what was there; name both.

    False where the report had to tell of damage.

    ``shown``: the sample and the field of the picture. Raises RecipeError for a suffix that is not known
    or a field that is not there, IndexError for such a sample, ParbakeError where a file cannot be written.
    """
    from parbake.browse import figures
    from parbake.browse.plot import figure_of
    from parbake.browse.report import report, tells_damage

    for option, path, suffixes in (("--plot", plot, figures.SUFFIXES), ("--html", html, _PAGES)):
        if path is not None:
            _check_place(option, path, suffixes)
    written: dict[str, tuple[Path, int]] = {}
    whole = True
    if plot is not None:
        try:
            picture = figure_of(store, *shown)
        except IndexError as error:  # said of an index; here it is an option
            raise RecipeError(f"--sample: {error}") from error
        written["plot"] = plot, _write(plot, figures.rendered(picture, _suffix(plot)))
    if html is not None:
        page = report(store)
        whole = not tells_damage(page)
        written["html"] = html, _write(html, page.encode())
        if not whole:
            click.echo(f"{store.path}: damaged, as {html} tells; run 'parbake verify {store.path}'", err=True)
    if as_json:
        print_json(**{name: str(path) for name, (path, _) in written.items()})
        return whole
    for path, nbytes in written.values():
        click.echo(f"{path}: {human.size(nbytes)}")
    return whole


def _suffix(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _check_place(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Before the work: what would be in vain is refused."""
    if _suffix(path) not in suffixes:
        named = " or ".join(f".{suffix}" for suffix in suffixes)
        raise RecipeError(f"{option} {path}: the suffix says what it becomes; end it in {named}")
    if path.is_dir():
        raise RecipeError(f"{option} {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise RecipeError(f"{option} {path}: no folder {path.parent}; make it first")


def _write(path: Path, content: bytes) -> int:
    from parbake.store.durable import write_durably

    try:
        write_durably(Path(os.path.realpath(path)), content)  # through a link, as any editor does
    except OSError as error:
        raise ParbakeError(f"{path}: cannot be written: {error.strerror or error}") from error
    return len(content)
