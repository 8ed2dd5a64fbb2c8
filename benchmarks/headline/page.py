"""The page: what the guides claim beside what was measured, made of the results alone. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from headline import disk, epoch, memory, mesh
from headline.environment import Environment
from headline.tasks import absence
from headline.text import flowed, number, percent, size, spoken, table, times

GUIDE_STEPS = 52_920  # 1.2 s at 44.1 kHz

INTRODUCTION = """\
What [the two guides](from-the-guides.md) promise, beside what `make headline` measured. That command
wrote this page, sentences and numbers, and `headline.json` beside it. Ways are compared on one machine
and in one run, in turn; seconds are medians. Files were in the page cache, and all ran on the CPU."""
SHORTENED = "**A shortened run: it shows that the measurement works; the numbers say nothing.**"


def page(stored: Mapping[str, Any]) -> str:
    """``stored``: ``environment``, and ``sections`` by name: {date, quick, result}."""
    sections = stored["sections"]
    parts = ["# Headline numbers", flowed(INTRODUCTION)]
    if any(section["quick"] for section in sections.values()):
        parts.append(SHORTENED)
    parts.append(environment(Environment(**stored["environment"]), {s["date"] for s in sections.values()}))
    parts += [text(sections[name]["result"]) for name, text in TEXTS.items() if name in sections]
    return paragraphs(parts) + "\n"


def paragraphs(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def environment(found: Environment, dates: set[str]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in found.packages.items())
    rows = [
        ("measured on", spoken(sorted(dates))),
        ("machine", f"{found.cores} cores ({found.processor}), {found.memory_nbytes / 2**30:.0f} GiB"),
        ("system", found.kernel),
        ("versions", f"Python {found.python}, {packages}"),
    ]
    return table(("", ""), rows)


# ---- epoch time

EPOCH_HOW = """\
*On the fly* is the guide's original: a plain DataLoader whose {workers} worker processes run the teacher
in float64, one tone at a time. *Cached* are the same tones from a store, through `parbake.BatchLoader`,
or through a plain DataLoader with {workers} workers. Batches of {batch}, in the same order; all ways
must give the same loss, or nothing is written. y is the alias-free target (`--target bandlimited`), on
the fly too. In all ways the training process shares the tones of a batch out among the {workers} cores,
one torch thread each, and workers are started before. Rounds: {rounds}. Waiting counts from the
epoch's beginning, the first batch included.

Students start as copies of their teacher. *Fine-tuning* is what `examples/amp_antialiasing` does with a
batch: {windows}. *Light* is one of several windows. The *free* student has none: it sums the batch, so it
does nothing but wait, and bounds what a GPU could gain. An LSTM runs without gradients to where its first
window begins, a WaveNet runs with them over all that it looks back on. The more a student costs on the
cores that the teacher runs on, the less there is to gain, since all ways pay for it."""
EPOCH_SAID = """\
**{teacher}**: an epoch from the store is {speeds} times as fast. The {student} student waits for data
{waited} of the time (aim: under 2 %), on the fly {before}. Baking took {bake_s} s, which {epochs} of its
epochs win back. One tone by itself takes the teacher {tone_s} s."""


def _epoch(stored: Mapping[str, Any]) -> str:
    result = epoch.Result.of(dict(stored))
    scale = result.scale
    head = (
        "teacher",
        "student",
        "way",
        f"epoch of {scale.tones} tones, s",
        "times as fast",
        "waits for data",
    )
    how = flowed(
        EPOCH_HOW,
        workers=result.workers,
        batch=scale.batch,
        rounds=scale.rounds,
        windows=spoken([_windows(result.students(teacher)[-1]) for teacher in result.bake_s]),
    )
    return paragraphs(
        (
            "## Epoch time: on the fly against cached",
            "The guide claims 5 to 10 times.",
            *(_epoch_said(result, teacher) for teacher in result.bake_s),
            table(head, (_epoch_row(result, row) for row in result.rows)),
            how,
            absence(result.bake_s),
        )
    )


def _windows(row: epoch.Row) -> str:
    steps = f"a step on a window of {row.window_steps:,} time steps"
    if row.windows > 1:
        steps = f"a step on each of {row.windows} windows of {row.window_steps:,} time steps"
    return f"{steps} ({row.teacher})"


def _epoch_row(result: epoch.Result, row: epoch.Row) -> tuple[str, ...]:
    fly = result.row(row.teacher, row.student, epoch.ON_THE_FLY)
    way = row.way if row is fly else f"cached, {row.way}"
    speed = "1" if row is fly else f"**{times(fly.epoch_s / row.epoch_s)}**"
    return row.teacher, row.student, way, number(row.epoch_s), speed, percent(row.waited)


def _epoch_said(result: epoch.Result, teacher: str) -> str:
    pairs = {
        row.student: (row, result.row(teacher, row.student, epoch.BATCH_LOADER))
        for row in result.students(teacher)
    }
    student, (fly, cached) = list(pairs.items())[-1]
    saved_s = fly.epoch_s - cached.epoch_s
    return flowed(
        EPOCH_SAID,
        teacher=teacher,
        speeds=spoken([f"{times(a.epoch_s / b.epoch_s)} ({name} student)" for name, (a, b) in pairs.items()]),
        student=student,
        waited=percent(cached.waited),
        before=percent(fly.waited),
        bake_s=number(result.bake_s[teacher]),
        epochs=times(result.bake_s[teacher] / saved_s) if saved_s > 0 else "none",
        tone_s=number(result.tone_s[teacher]),
    )


# ---- meshes

MESH_HOW = """\
All six pairs of {data} ({nodes} nodes, four channels). The guide does not show its code, so two readings
of it are timed: an interpolator for each field and step, and the most that SciPy can share, one
triangulation a pair and one call a step. Both pickle lists of dictionaries in the guide's form.
parbake's first run also hashes its inputs and syncs to the disk, and gives nodes outside the coarse mesh
a value where SciPy leaves NaN. Its runs, and all second runs, have a fresh process each, whose imports
are not counted. Opening reads no values, so the row below it also reads every step, decoded and checked."""
MESH_WAYS = {
    mesh.PER_FIELD: f"first run: {mesh.PER_FIELD}, pickled",
    mesh.SHARED: f"first run: {mesh.SHARED}, pickled",
    mesh.BAKE: "first run: parbake interpolates and stores",
    mesh.PICKLE: "second run: `pickle.load`",
    mesh.OPEN: "second run: parbake opens",
    mesh.READ: "second run: parbake opens and reads every step",
}
MESH_RATIOS = (
    ("first runs: SciPy per field and step / parbake", mesh.PER_FIELD, mesh.BAKE),
    ("first runs: SciPy on one triangulation / parbake", mesh.SHARED, mesh.BAKE),
    ("SciPy per field and step, first / parbake, second", mesh.PER_FIELD, mesh.OPEN),
    ("the same, every step read", mesh.PER_FIELD, mesh.READ),
    ("parbake, first / second", mesh.BAKE, mesh.OPEN),
    ("second runs: `pickle.load` / parbake opens", mesh.PICKLE, mesh.OPEN),
    ("second runs: `pickle.load` / every step read", mesh.PICKLE, mesh.READ),
)


def _mesh(stored: Mapping[str, Any]) -> str:
    result = mesh.Result.of(dict(stored))
    seconds = {length.steps: mesh.with_scaled(result, length) for length in result.lengths}
    scaled = {length.steps for length in result.lengths if mesh.PER_FIELD not in length.seconds}
    rows = [(text, *(number(taken[way]) for taken in seconds.values())) for way, text in MESH_WAYS.items()]
    for text, slow, fast in MESH_RATIOS:
        rows.append((text, *(f"**{times(taken[slow] / taken[fast])}**" for taken in seconds.values())))
    rows.append(("size of the pickles", *(size(length.pickle_nbytes) for length in result.lengths)))
    rows.append(("size of the stores", *(size(length.store_nbytes) for length in result.lengths)))
    said = [f"{n:,}" for n in scaled]
    return paragraphs(
        (
            "## Making a dataset of mesh pairs: first and second run",
            "The guide claims 30-120 s for the first run and 1-2 s for the second, 10 to 100 times.",
            table(("seconds; ratios bold", *(f"{n:,} steps" for n in seconds)), rows),
            f"SciPy per field and step at {spoken(said)} steps is scaled up from the shorter series."
            if said
            else "",
            flowed(MESH_HOW, data=result.data, nodes=spoken([f"{n:,}" for n in result.nodes])),
        )
    )


# ---- disk

DISK_SAID = """\
The guide's formula is "~50 KB per sample (1.2s @ 44.1 kHz, float64)". A sample is x and y, 2 x {steps:,}
x 8 bytes = {nbytes}, so the guide's table is too small by a factor of {factor}. Sizes are those of whole
files over their samples, metadata and checksums included, with x, y, f0 and dB; y is the teacher's whole
output. Stores hold float32 unless the row says otherwise."""
DISK_TONES = """\
**{teacher}**: {samples} tones of 2 x {steps:,} steps, which is {nbytes} a sample in float64. The
smallest store takes {ratio} times less than the guide's file (`torch.save`)."""


def _disk(stored: Mapping[str, Any]) -> str:
    result = disk.Result.of(dict(stored))
    nbytes = 2 * GUIDE_STEPS * 8
    factor = times(nbytes / disk.GUIDE_NBYTES)
    parts = ["## Disk: bytes a sample"]
    parts.append(flowed(DISK_SAID, steps=GUIDE_STEPS, nbytes=size(nbytes), factor=factor))
    for tones in result.tones:
        smallest = min(tones.nbytes[name] for name in disk.STORES)
        said = flowed(
            DISK_TONES,
            teacher=tones.teacher,
            samples=tones.samples,
            steps=tones.steps,
            nbytes=size(2 * tones.steps * 8),
            ratio=times(tones.nbytes[disk.TORCH_SAVE] / smallest),
        )
        parts += [said, _disk_table(tones)]
    return paragraphs([*parts, absence(tones.teacher for tones in result.tones)])


def _disk_table(tones: disk.Tones) -> str:
    guide = tones.nbytes[disk.TORCH_SAVE]
    head = ("", "a sample", "over the guide's file", *(f"{n:,} samples" for n in disk.PROJECTED))
    rows = [("*the guide says*", "50 kB", "", *disk.GUIDE_TABLE)]
    for name, nbytes in tones.nbytes.items():
        projected = (size(n * nbytes) for n in disk.PROJECTED)
        rows.append((name, size(nbytes), f"{nbytes / guide:.2f}", *projected))
    return table(head, rows)


# ---- memory

MEMORY_SAID = """\
{factor:g} times the samples take {growth} times the private memory. At {many:,} samples the list takes
**{ratio}** times as much as `BatchLoader`."""
MEMORY_HOW = """\
Peaks of one epoch of a small student in a fresh process, beyond what it had after its imports. *Private*
is memory of the process's own (anonymous and shared memory, from `/proc/self/status`). *Mapped* are
pages of files in the page cache: the store's, and libraries'; processes share them, and the system takes
them back when it needs the memory. Resident memory, which most tools show, is the two together. Samples
are 2 x {steps:,} steps, {part:.2g} of the guide's, so that the list fits into a small machine. The list
is float64, as the guide's; of tones of 1.2 s it would take {whole} at {many:,} samples. The store is
float32, lz4; batches of 64, no worker processes."""


def _memory(stored: Mapping[str, Any]) -> str:
    result = memory.Result.of(dict(stored))
    few, many = sorted({row.samples for row in result.rows})
    listed = result.row(memory.LIST, many).private_nbytes
    grown = {
        way: result.row(way, many).private_nbytes / result.row(way, few).private_nbytes
        for way in dict.fromkeys(row.way for row in result.rows)
    }
    said = flowed(
        MEMORY_SAID,
        factor=many / few,
        growth=spoken([f"{times(factor)} ({way})" for way, factor in grown.items()]),
        many=many,
        ratio=times(listed / result.row(memory.BATCH_LOADER, many).private_nbytes),
    )
    how = flowed(
        MEMORY_HOW,
        steps=result.steps,
        part=result.steps / GUIDE_STEPS,
        many=many,
        whole=size(listed * GUIDE_STEPS / result.steps),
    )
    head = ("", "samples", "file", "private, peak", "mapped, peak", "resident, peak")
    title = "## Memory: a training run from the store against the list in RAM"
    return paragraphs((title, said, table(head, map(_memory_row, result.rows)), how))


def _memory_row(row: memory.Row) -> tuple[str, ...]:
    way = row.way if row.way == memory.LIST else f"store, {row.way}"
    sizes = (row.mapped_nbytes, row.resident_nbytes)
    return (
        way,
        f"{row.samples:,}",
        size(row.file_nbytes),
        f"**{size(row.private_nbytes)}**",
        *map(size, sizes),
    )


TEXTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "epoch": _epoch,
    "mesh": _mesh,
    "disk": _disk,
    "memory": _memory,
}
