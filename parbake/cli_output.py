"""What the verbs print on stdout: tables that stay readable in 80 columns, or one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from parbake import human
from parbake.browse.facts import raw_nbytes, stored_nbytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from parbake.producers.dry_run import DryRun
    from parbake.producers.reporting import Progress
    from parbake.store.cache import StoreSummary
    from parbake.store.keys import Freshness
    from parbake.store.publish import Unfinished
    from parbake.store.store import Store
    from parbake.store.verify import Damage, VerifyReport


_NAMES_MAX = 10  # in one line
_OPERATOR = "mesh-operator"  # what pairs of meshes keep for themselves: told in one line


def show_bake(path: Path, store: Store, last: Progress | None, as_json: bool) -> dict[str, Any]:
    """One line on what the bake left; as JSON it is given back only."""
    raw, stored = raw_nbytes(store), stored_nbytes(store)
    baked = last.samples_total if last is not None else 0
    seconds = last.seconds if last is not None else 0.0
    result = {
        "path": str(path),
        "samples": store.samples,
        "samples_baked": baked,
        "nbytes_raw": raw,
        "nbytes_stored": stored,
        "ratio": ratio_of(raw, stored),
        "seconds": seconds,
        "digest": store.digest,
    }
    if as_json:
        return result
    did = "nothing left to bake"
    if baked:
        which = "" if baked == store.samples else f"{baked:,} of them "
        did = f"{which}baked in {human.duration(seconds)}"
    if len(masked := _masked(store)):
        which = ", ".join(map(str, masked[:5])) + (", ..." if len(masked) > 5 else "")
        click.echo(f"{path}: {human.count(len(masked), 'sample')} masked, valid is False: {which}", err=True)
    samples = human.count(store.samples, "sample")
    click.echo(f"{path}: {samples}, {human.size(stored)} (ratio {human.ratio(raw, stored)}), {did}")
    return result


def show_converted(source: Path, target: Path, store: Store, as_json: bool) -> None:
    """One line on the store that was made."""
    raw, stored = raw_nbytes(store), stored_nbytes(store)
    if as_json:
        print_json(
            source=str(source),
            path=str(target),
            samples=store.samples,
            nbytes_raw=raw,
            nbytes_stored=stored,
            ratio=ratio_of(raw, stored),
            digest=store.digest,
        )
        return
    samples = human.count(store.samples, "sample")
    click.echo(f"{target}: {samples}, {human.size(stored)} (ratio {human.ratio(raw, stored)}), from {source}")


def _masked(store: Store) -> NDArray[np.int64]:
    """Samples that ``teacher`` marked because their inputs failed."""
    from parbake.producers.networks.teacher import VALID, Teacher

    shared = store.invalidation_keys.shared
    keys = shared.get("keys")
    masks = (
        shared["producer"] == Teacher.name and isinstance(keys, Mapping) and keys.get("on_error") == "mask"
    )
    return np.flatnonzero(~store[VALID][:]) if masks else np.empty(0, np.int64)


def show_dry_run(path: Path, predicted: DryRun, as_json: bool) -> dict[str, Any]:
    """What a bake would make and cost; as JSON it is given back only."""
    result = {"path": str(path), **vars(predicted), "ratio": predicted.ratio, "fits": predicted.fits}
    if as_json:
        return result
    kept = predicted.samples - predicted.missing_samples
    fits = "fits" if predicted.fits else "DOES NOT FIT"
    rows = [
        ("store", str(path)),
        ("samples", f"{predicted.samples:,}, {kept:,} of them there already"),
        ("raw", human.size(predicted.nbytes_raw)),
        ("stored, about", f"{human.size(predicted.nbytes_stored)} (ratio {human.ratio(predicted.ratio, 1)})"),
        ("ratio by field", ", ".join(f"{name} {human.ratio(r, 1)}" for name, r in predicted.fields.items())),
        ("time, about", human.duration(predicted.seconds)),
        ("free disk", f"{human.size(predicted.free_nbytes)}: {fits}"),
        ("a random sample", f"decodes {human.size(predicted.read_nbytes_per_sample)}"),
    ]
    print_parts(pairs(rows))
    return result


def show_freshness(path: Path, freshness: Freshness, as_json: bool) -> None:
    """``fresh``, or a line for each key that changed."""
    if as_json:
        changes = [
            {"field": c.field, "path": c.path, "stored": c.stored, "wanted": c.wanted}
            for c in freshness.changes
        ]
        print_json(path=str(path), fresh=bool(freshness), changes=changes)
        return
    for line in map(str, freshness.changes) if freshness.changes else ["fresh"]:
        click.echo(human.printable(line))


def show_verified(
    path: Path, report: VerifyReport, repaired: Sequence[Damage], remedy: str, as_json: bool
) -> None:
    """A line for each damaged part, or that all is whole; ``repaired``: what was damaged before."""
    if as_json:
        print_json(
            path=str(path),
            whole=bool(report),
            checked_nbytes=report.checked_nbytes,
            unchecked=list(report.unchecked),
            damaged=list(map(vars, report.damaged)),
            repaired=list(map(vars, repaired)),
        )
        return
    show_damage(report.damaged)
    if repaired:
        click.echo(f"{path}: {human.count(len(repaired), 'damaged part')} repaired")
    if report:
        found = f"whole, {human.size(report.checked_nbytes)} checked"
        if report.unchecked:  # what can be said of these is less
            found = "all of it can be read" if not report.checked_nbytes else found
            found += f"; without checksums: {_some(report.unchecked)}"
        click.echo(human.printable(f"{path}: {found}"))
    else:
        damaged = human.count(len(report.damaged), "damaged part")
        click.echo(f"{path}: {damaged}; {remedy}", err=True)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_MAX
    return ", ".join([*names[:_NAMES_MAX], *([f"{more:,} more"] if more > 0 else [])])


def show_damage(damaged: Sequence[Damage]) -> None:
    """A line for each damaged part."""
    for damage in damaged:
        click.echo(human.printable(str(damage)))


def show_unfinished(path: Path, unfinished: Sequence[Unfinished], as_json: bool) -> None:
    """How far an unfinished bake is, and how it goes on."""
    if as_json:
        print_json(path=str(path), state="unfinished", unfinished=bakes_json(unfinished))
        return
    for bake in unfinished:
        click.echo(f"{path}: {bake}")


def bakes_json(unfinished: Sequence[Unfinished]) -> list[dict[str, Any]]:
    return [
        {"slabs_done": bake.slabs_done, "slabs": bake.slabs, "command": bake.command} for bake in unfinished
    ]


def show_stores(folder: Path, stores: Sequence[StoreSummary], as_json: bool) -> None:
    """The stores of a folder, and what they take together."""
    total = sum(s.nbytes_stored for s in stores)
    if as_json:
        rows = [{**vars(s), "path": str(s.path), "ratio": s.ratio} for s in stores]
        print_json(folder=str(folder), nbytes_stored=total, stores=rows)
        return
    operators = [s for s in stores if s.producer == _OPERATOR]
    listed = [s for s in stores if s.producer != _OPERATOR]
    if listed:
        # a cache names its entries by producer and keys: said once is enough in 80 columns
        named = all(s.path.name.startswith(f"{s.producer}-") for s in listed)
        origin = ("inputs",) if named else ("producer", "keys")
        header = ("store", *origin, "samples", "size", "ratio", "state", "used")
        cells = [_listed(store, named) for store in listed]
        print_parts(table(header, cells, right=range(len(origin) + 1, len(origin) + 4), gap=1))
    kept = human.size(sum(s.nbytes_stored for s in operators))
    beside = f", with {human.count(len(operators), 'interpolation operator')} of {kept}" if operators else ""
    click.echo(f"{folder}: {human.count(len(listed), 'store')}, {human.size(total)}{beside}")


def show_clearing(folder: Path, whole: Sequence[StoreSummary], bakes: Sequence[StoreSummary]) -> None:
    """What is about to go, on stderr: it is a question, not a result."""
    for store in whole:
        used = f", used {_age(store.last_used)}" if store.last_used else ""
        click.echo(f"{store.path.name}: {human.size(store.nbytes_stored)}, {store.state}{used}", err=True)
    for store in bakes:
        done, slabs = store.slabs or (0, 0)
        click.echo(f"{store.path.name}: unfinished bake, {done} of {slabs} slabs", err=True)
    if not whole and not bakes:
        click.echo(f"{folder}: nothing to remove", err=True)


def show_cleared(
    folder: Path, removed: Sequence[Path], kept: Sequence[str], freed_nbytes: int, as_json: bool
) -> None:
    """What went, and what stayed and why."""
    if as_json:
        paths = [str(path) for path in removed]
        print_json(folder=str(folder), removed=paths, kept=list(kept), nbytes_freed=freed_nbytes)
        return
    for reason in kept:
        click.echo(human.printable(reason), err=True)
    if removed:
        stores = human.count(len(removed), "store")
        click.echo(f"{folder}: {stores} removed, {human.size(freed_nbytes)} freed")


def _listed(store: StoreSummary, named: bool) -> tuple[str, ...]:
    return (
        store.path.name,
        *((", ".join(store.inputs) or "-",) if named else (store.producer or "-", (store.keys or "-")[:8])),
        f"{store.samples:,}" if store.samples is not None else "-",
        human.size(store.nbytes_stored),
        human.ratio(store.ratio, 1) if store.ratio else "-",
        store.state,
        _age(store.last_used) if store.last_used else "-",
    )


def _age(moment: datetime) -> str:
    days = (datetime.now().astimezone().date() - moment.astimezone().date()).days
    return "today" if days < 1 else f"{days} d ago"


# ---- printing


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    wrapped: int = 0,
    gap: int = 2,
) -> RenderableType:
    """Rows of text; columns ``right`` are numbers, ``wrapped`` breaks its lines on a narrow screen."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for position, name in enumerate(header):
        made.add_column(
            name,
            justify="right" if position in right else "left",
            overflow="fold",
            no_wrap=position != wrapped,
        )
    for row in rows:
        made.add_row(*(Text(human.printable(cell)) for cell in row))  # Text: [brackets] are no markup
    return made


def pairs(rows: Iterable[tuple[str, str]]) -> RenderableType:
    """A line for each ``key: value``."""
    from rich.text import Text

    lines = [Text.assemble((f"{human.printable(k)}: ", "dim"), human.printable(v)) for k, v in rows]
    return Text("\n").join(lines)


def print_parts(*parts: RenderableType) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for part in parts:
        console.print(part, soft_wrap=not isinstance(part, Table))  # soft: copied lines stay whole


def print_json(**values: Any) -> None:
    click.echo(json.dumps(_plain(values), ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    """As JSON; what is not finite becomes its name, so that any JSON reader takes it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, complex):
        return [_plain(value.real), _plain(value.imag)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path | datetime) else value


def ratio_of(raw: int, stored: int) -> float | None:
    return raw / stored if stored else None
