"""What the verbs print on stdout: tables that stay readable in 80 columns, or one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from parbake import human
from parbake.browse.facts import raw_nbytes, stored_nbytes
from parbake.cli_tables import Rows, pairs, print_parts

if TYPE_CHECKING:
    from parbake.producers.dry_run import DryRun
    from parbake.producers.reporting import Progress
    from parbake.store.cache import StoreSummary
    from parbake.store.keys import Freshness
    from parbake.store.publish import Unfinished
    from parbake.store.store import Store
    from parbake.store.verify import Damage, VerifyReport


_NAMES_MAX = 10  # in one line


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
    from parbake.store.cache import OPERATOR

    total = sum(s.nbytes_stored for s in stores)
    if as_json:
        rows = [{**vars(s), "path": str(s.path), "ratio": s.ratio} for s in stores]
        print_json(folder=str(folder), nbytes_stored=total, stores=rows)
        return
    operators = [s for s in stores if s.producer == OPERATOR]
    listed = [s for s in stores if s.producer != OPERATOR]
    if listed:
        columns = _columns(listed)
        right = [i for i, name in enumerate(columns) if name in ("samples", "size", "ratio")]
        print_parts(Rows([*columns], [*zip(*columns.values(), strict=True)], right, gap=1))
    kept = human.size(sum(s.nbytes_stored for s in operators))
    beside = f", with {human.count(len(operators), 'interpolation operator')} of {kept}" if operators else ""
    whole = ", all complete" if listed and all(s.state == "complete" for s in listed) else ""
    click.echo(f"{folder}: {human.count(len(listed), 'store')}{whole}, {human.size(total)}{beside}")


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


def _columns(stores: Sequence[StoreSummary]) -> dict[str, list[str]]:
    """What is told of each store, less what is the same of all as it should be: 80 columns are few."""
    columns = {
        "store": [s.path.name for s in stores],
        "producer": [s.producer or "-" for s in stores],
        "keys": [(s.keys or "-")[:8] for s in stores],
        "samples": [f"{s.samples:,}" if s.samples is not None else "-" for s in stores],
        "size": [human.size(s.nbytes_stored) for s in stores],
        "ratio": [human.ratio(s.ratio, 1) if s.ratio else "-" for s in stores],
        "state": [s.state for s in stores],
        "used": [_age(s.last_used) if s.last_used else "-" for s in stores],
    }
    if all(s.path.name.startswith(f"{s.producer}-") for s in stores):  # a cache's own names
        del columns["producer"], columns["keys"]
        if any(s.inputs for s in stores):
            inputs = {"inputs": [", ".join(s.inputs) or "-" for s in stores]}
            columns = {"store": columns.pop("store"), **inputs, **columns}
    if all(s.state == "complete" for s in stores):
        del columns["state"]
    return columns


def _age(moment: datetime) -> str:
    days = (datetime.now().astimezone().date() - moment.astimezone().date()).days
    return "today" if days < 1 else f"{days} d ago"


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
