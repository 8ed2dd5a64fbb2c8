"""``parbake bench``: how fast a store loads, by loader, batch size and workers, and the best as code."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parbake import human
from parbake.cli_options import Parsed, as_json_option, sample_dim_option
from parbake.errors import RecipeError
from parbake.progress import LINE_EVERY_S

if TYPE_CHECKING:
    from parbake.loaders.timing import Measurement, Setting, Subject

TOTAL_S, SETTING_S = 20.0, 1.0  # where nobody says: of all settings, and of one at most
READ_AHEAD_S = 10.0


def _numbers(least: int) -> Callable[[str], tuple[int, ...]]:
    def parse(text: str) -> tuple[int, ...]:
        numbers = tuple(int(part) for part in text.split(","))
        if min(numbers) < least:
            raise ValueError(text)
        return numbers

    return parse


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) < math.inf:  # NaN would never be over
        raise ValueError(text)
    return seconds


@click.command("bench")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--fields",
    type=Parsed("list of fields", lambda text: tuple(text.split(",")), "x,y"),
    multiple=True,
    metavar="NAME,...",
    help="Fields to read  [default: all]",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=Parsed("list of batch sizes", _numbers(1), "16,64"),
    multiple=True,
    metavar="N,...",
    help="Samples a batch  [default: 16,64,256, or fewer of large samples]",
)
@click.option(
    "--workers",
    type=Parsed("list of numbers of workers", _numbers(0), "0,2"),
    multiple=True,
    metavar="N,...",
    help="Worker processes, and threads of BatchLoader  [default: 0,2, from four cores on also 4]",
)
@click.option("--cold", is_flag=True, help="Also measure with files that the kernel was asked to forget.")
@click.option(
    "--seconds",
    type=Parsed("time above 0", _seconds, "0.5"),
    metavar="S",
    help="Time for each setting  [default: 20 s shared by all, 1 s at most]",
)
@sample_dim_option
@as_json_option
def bench(
    path: Path,
    fields: tuple[tuple[str, ...], ...],
    batch_sizes: tuple[tuple[int, ...], ...],
    workers: tuple[tuple[int, ...], ...],
    cold: bool,
    seconds: float | None,
    sample_dim: str | None,
    as_json: bool,
) -> None:
    """Measure how fast PATH loads, and show the best way as code.

    In random order, for torch's DataLoader, BatchLoader (threads) and ds.loader (processes that share
    memory): samples and decoded MB (1,000,000 bytes) a second, every value summed on one thread, and the time
    to the first batch. Measured is a later epoch: files in memory, checksums checked. Cold is the first one;
    but the kernel is only asked to forget the files, and keeps what another process uses. The best is the
    fastest, or the simplest of those within 5 % of it; DataLoader with 0 workers reads while your loop waits.
    """
    from parbake.loaders import machine, timing

    subject = timing.Subject.at(path, _joined(fields) or None, sample_dim)
    settings = timing.settings_of(
        _joined(batch_sizes) or timing.default_batch_sizes(subject.samples, subject.sample_nbytes),
        _joined(workers) or timing.default_workers(machine.cores()),
    )
    skipped = _refused(subject, settings)
    settings = [setting for setting in settings if setting not in skipped]
    if not settings:
        raise RecipeError(
            f"{path}: nothing to measure: {next(iter(skipped.values()))}; choose other settings"
        )
    measured = _measured(subject, settings, seconds, cold)
    show = _print_json if as_json else _show
    show(subject, measured, skipped, timing.best(one for one in measured if not one.cold))


def _joined(groups: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [value for group in groups for value in group]


def _refused(subject: Subject, settings: Iterable[Setting]) -> dict[Setting, str]:
    """The settings that cannot run, and why."""
    from parbake.loaders import machine, timing

    free = machine.free_memory_nbytes(), machine.free_shared_memory_nbytes()
    reasons = {
        setting: timing.refusal(setting, subject.samples, subject.sample_nbytes, *free)
        for setting in settings
    }
    return {setting: reason for setting, reason in reasons.items() if reason is not None}


def _measured(
    subject: Subject, settings: Sequence[Setting], seconds: float | None, cold: bool
) -> list[Measurement]:
    """All settings, the cold ones first: those that follow find the files in memory."""
    states = (True, False) if cold else (False,)
    seconds = seconds or min(TOTAL_S / (len(settings) * len(states)), SETTING_S)
    found = []
    with _progress(len(settings) * len(states)) as started:
        for is_cold in states:
            if not is_cold:
                _read_ahead(subject)
            for setting in settings:
                started(setting)
                found.append(subject.measured(setting, seconds, cold=is_cold))
    return found


def _read_ahead(subject: Subject) -> None:
    from parbake.loaders import machine

    total = sum(file.stat().st_size for file in subject.files)
    if (read := machine.read_ahead(subject.files, READ_AHEAD_S)) < total:
        click.echo(
            f"{subject.path}: {human.size(read)} of {human.size(total)} were brought into memory in "
            f"{human.duration(READ_AHEAD_S)}; what is called warm may wait for the disk",
            err=True,
        )


# ---- what is shown


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[Setting], None]]:
    """Takes each setting as it begins: a bar in a terminal, elsewhere a line every few seconds."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_interactive:
        yield _lines(total)
        return
    # not by itself, from a thread: that would take time from what is measured, and be there in forks
    with Progress(console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=total)

        def started(setting: Setting) -> None:
            bar.update(task, description=_named(setting), refresh=True)
            bar.advance(task)

        yield started


def _lines(total: int) -> Callable[[Setting], None]:
    numbers, said = itertools.count(1), time.monotonic()

    def started(setting: Setting) -> None:
        nonlocal said
        number = next(numbers)
        if time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            click.echo(f"setting {number} of {total}: {_named(setting)}", err=True)

    return started


def _named(setting: Setting) -> str:
    return f"{setting.loader}, batches of {setting.batch_size}, {_workers(setting, 'worker')}"


def _workers(setting: Setting, noun: str = "") -> str:
    noun = "thread" if setting.loader == "BatchLoader" else noun
    return human.count(setting.workers, noun) if noun else str(setting.workers)


def _show(
    subject: Subject, measured: Sequence[Measurement], skipped: Mapping[Setting, str], best: Measurement
) -> None:
    """A row for each setting, and the best as code."""
    from parbake.cli_tables import Rows, print_parts

    for reason in dict.fromkeys(skipped.values()):
        which = [setting for setting, why in skipped.items() if why == reason]
        click.echo(f"skipped: {_named(which[0])}{_more(len(which) - 1)}: {reason}", err=True)
    cold = {one.setting: one for one in measured if one.cold}
    header = ["loader", "batch", "workers", "samples/s", "MB/s", "first batch"]
    rows = [
        [
            one.setting.loader,
            str(one.setting.batch_size),
            _workers(one.setting),
            *_figures(one),
            *(_figures(cold[one.setting])[::2] if cold else ()),
        ]
        for one in measured
        if not one.cold
    ]
    if cold:
        header += ["cold", "first cold"]
    print_parts(Rows(header, rows, range(1, len(header)), gap=1 if cold else 2))
    setting = best.setting
    click.echo(f"best: {_named(setting)}, {human.rate(best.samples_per_s)}")
    click.echo(setting.code(subject.path, subject.fields, subject.sample_dim))


def _more(count: int) -> str:
    return f" and {count} more" if count else ""


def _figures(one: Measurement) -> tuple[str, str, str]:
    """Samples and MB a second, time to the first batch."""
    ms = 1000 * one.first_batch_s
    first = f"{ms:.0f} ms" if ms < 999.5 else human.duration(one.first_batch_s)
    return _rounded(one.samples_per_s), _rounded(one.nbytes_per_s / 1e6), first


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def _print_json(
    subject: Subject, measured: Sequence[Measurement], skipped: Mapping[Setting, str], best: Measurement
) -> None:
    from parbake.cli_output import print_json
    from parbake.loaders import machine

    code = best.setting.code(subject.path, subject.fields, subject.sample_dim)
    print_json(
        path=subject.path,
        fields=subject.fields,
        samples=subject.samples,
        sample_nbytes=subject.sample_nbytes,
        cores=machine.cores(),
        measured=[_described(one) for one in measured],
        skipped=[{**vars(setting), "reason": reason} for setting, reason in skipped.items()],
        best={**vars(best.setting), "code": code},
    )


def _described(one: Measurement) -> dict[str, Any]:
    values = {**vars(one.setting), **vars(one)}
    del values["setting"]
    return values | {"samples_per_s": one.samples_per_s, "nbytes_per_s": one.nbytes_per_s}
