"""A run: data, student, batches, reports, and what is left of it at the end."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from batch import train_batch
from checkpoint import Place, Run, load, save
from data import Draws, baked, batches_of, draws_of, tasks
from figure import draw_spectrum
from metrics import Metrics, row_of
from options import Options
from recipes import Recipe, recipe_for
from students import save_student, student_of
from validation import Scores, ValidationSet, read_validation, table

import parbake
from parbake.producers import SineTeacher

REPORTS = 20  # over a run
REPORT_NOTES = 11  # of each level in a report; before and after all are taken
EARLY_SHARE, EARLY_S = 0.2, 180.0  # of the run, whichever comes first
PROBED_SHARE = 0.05  # of the time to train, after which the number of steps is settled


@dataclass(frozen=True, eq=False)
class Data:
    """Training tones in their order, and what is validated on."""

    task: SineTeacher
    batches: Any
    draws: Draws
    validation: ValidationSet
    reported: ValidationSet  # the part of it that a report takes
    identity: str  # of the tones


def run(options: Options) -> bool:
    """Trains as ``options`` say; False where Ctrl-C ended it before its end."""
    torch.set_num_threads(1)  # tones are shared out among threads instead
    task, validating = tasks(options.teacher, options.config)
    student = student_of(task.teacher_path)
    recipe = _chosen(recipe_for(student.kind), options)
    if recipe.settle_steps + recipe.windows * recipe.window_steps > round(task.sample_rate):
        raise parbake.RecipeError("recipes.py: a batch's windows do not fit into the second that is kept")
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists() != options.resume:
        there = "holds no run to resume; leave --resume out"
        if checkpoint.exists():
            there = "holds a run; add --resume to go on with it"
        raise parbake.RecipeError(f"{options.out}: {there}, or name another --out")
    data = open_data(task, validating, recipe, options)
    identity = {"teacher": task.teacher_sha256[:12], "tones": data.identity, "seed": options.seed}
    # what the length of the run, its rounding and the tones of its scores depend on
    for name in ("epochs", "minutes", "threads", "validation_tones"):
        identity[name] = getattr(options, name)
    identity |= asdict(recipe)
    state = Run(student, torch.optim.Adam(student.parameters(), recipe.lr), Place())
    if options.resume:
        load(state, identity, checkpoint)
    options.out.mkdir(parents=True, exist_ok=True)
    before = data.validation.teacher_scores()
    print(
        f"{student.kind} at {task.sample_rate:g} Hz, {data.identity}; the teacher's aliases: ESR-S "
        f"{before.esr_s_mean:.2f} dB, over the notes of a report "
        f"{data.reported.teacher_scores().esr_s_mean:.2f} dB",
        flush=True,
    )
    shown = {name: str(value) for name, value in asdict(options).items()}
    with Metrics(options.out, state.place.step, options.wandb, shown) as metrics, interruptions() as stopped:
        done = fit(state, data, recipe, options, metrics, lambda: save(state, identity, checkpoint), stopped)
    if done:
        finish(state, data, before, options)
    else:
        print(
            f"stopped after {state.place.step:,} steps; go on with the same command and --resume", flush=True
        )
    return done


def _chosen(recipe: Recipe, options: Options) -> Recipe:
    """The recipe with what the command line says otherwise."""
    return replace(
        recipe,
        lr=recipe.lr if options.lr is None else options.lr,
        batch_tones=recipe.batch_tones if options.batch_size is None else options.batch_size,
    )


def open_data(task: SineTeacher, validating: SineTeacher, recipe: Recipe, options: Options) -> Data:
    """Stores, baked where they are missing; or the same numbers computed as they are asked for."""
    samples: parbake.Samples
    if options.use_cached_data:
        samples = baked(task, options.cached_train_path, options.num_samples)
        to_validate = baked(validating, options.cached_val_path, None)
    else:
        # workers are forked, and CUDA does not outlive a fork
        task, validating = replace(task, device="cpu"), replace(validating, device="cpu")
        samples = parbake.cached(
            replace(task, num_samples=options.num_samples or task.num_samples), use_cache=False
        )
        to_validate = parbake.cached(validating, use_cache=False)
        print("the teacher computes the validation tones", flush=True)
    draws = draws_of(samples, recipe, options.seed)
    batches = batches_of(samples, draws, recipe.batch_tones, options.workers)
    validation = read_validation(to_validate, task.sample_rate, options.validation_tones)
    identity = f"{samples.samples:,} tones {samples.digest[:12]}"
    return Data(task, batches, draws, validation, validation.few(REPORT_NOTES), identity)


@contextlib.contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Ctrl-C within: the function given says that it was pressed. A second one ends the program at once."""
    pressed = []

    def note(number: int, _: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)
        print("\nstopping after this batch", flush=True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


# ---- the loop


def fit(
    state: Run,
    data: Data,
    recipe: Recipe,
    options: Options,
    metrics: Metrics,
    keep: Callable[[], None],
    stopped: Callable[[], bool],
) -> bool:
    """Trains to the end of the run, which ``keep`` saves; False where ``stopped`` ended it before."""
    if state.place.total_steps is None:
        state.at(total_steps=_total_steps(state.place, data.draws, recipe, options))
    since, waited_s, tones = state.place.trained_s, 0.0, 0
    for batch, waiting_s in _batches(state, data):
        began = time.perf_counter()
        loss = train_batch(state, batch, recipe, data.task.sample_rate, options.seed, options.threads)
        if not math.isfinite(loss):
            raise parbake.ParbakeError(
                f"step {state.place.step:,}: the loss is {loss}; the checkpoint before it is kept. "
                "A silent tone does this, or a learning rate that is too high"
            )
        place = state.place
        waited_s, tones = waited_s + waiting_s, tones + len(batch[0])
        state.at(
            batch=place.batch + 1,
            step=place.step + recipe.windows,
            trained_s=place.trained_s + waiting_s + time.perf_counter() - began,
            loss_sum=place.loss_sum + loss,
            loss_steps=place.loss_steps + recipe.windows,
        )
        if state.place.total_steps is None:
            state.at(total_steps=_total_steps(state.place, data.draws, recipe, options))
        total, reports = state.place.total_steps, False
        if total is not None:
            reports = _part(state.place.step, total) != _part(place.step, total)
        if state.early is None and _is_early(state.place):
            state.early = data.validation.scores(state.student, options.threads), state.place.trained_s
        if reports:
            place, scores = state.place, data.reported.scores(state.student, options.threads)
            epoch = place.epoch + place.batch / data.draws.batches
            took_s = max(place.trained_s - since, 1e-9)
            rest = {
                "tones_per_s": tones / took_s,
                "waiting_share": waited_s / took_s,
                "trained_s": place.trained_s,
            }
            metrics.report(row_of(place.step, epoch, place.loss_sum / place.loss_steps, scores, **rest))
            since, waited_s, tones = place.trained_s, 0.0, 0
            state.at(loss_sum=0.0, loss_steps=0)
        if reports or stopped():
            keep()
        if stopped():
            return False
    return True


def _batches(state: Run, data: Data) -> Iterator[tuple[Any, float]]:
    """Batches from the run's place to its end, epoch after epoch, and the seconds waited for each."""
    while state.place.total_steps is None or state.place.step < state.place.total_steps:
        if state.place.batch == data.draws.batches:
            state.at(epoch=state.place.epoch + 1, batch=0)
        data.draws.epoch, data.draws.batch = state.place.epoch, state.place.batch
        asked = time.perf_counter()
        for batch in data.batches:
            yield batch, time.perf_counter() - asked
            if state.place.step == state.place.total_steps:
                return
            asked = time.perf_counter()


def _total_steps(place: Place, draws: Draws, recipe: Recipe, options: Options) -> int | None:
    """Optimiser steps of the run: by its epochs, or by the speed so far; None while that is not known."""
    by_epochs = math.inf if options.epochs is None else options.epochs * draws.batches * recipe.windows
    if options.minutes is None:
        return int(by_epochs)
    budget_s = options.minutes * 60
    if place.trained_s < PROBED_SHARE * budget_s and place.step < by_epochs:
        return None
    batches = round(budget_s / place.trained_s * place.step / recipe.windows)
    return int(min(by_epochs, max(batches * recipe.windows, place.step)))


def _part(step: int, total_steps: int) -> int:
    """Which report a step belongs to."""
    return step * REPORTS // total_steps


def _is_early(place: Place) -> bool:
    total = place.total_steps
    return place.trained_s >= EARLY_S or (total is not None and place.step >= EARLY_SHARE * total)


# ---- the end


def finish(state: Run, data: Data, before: Scores, options: Options) -> None:
    """Student, table, results.json and figure."""
    teacher, out = data.task.teacher_path, options.out
    saved = out / f"student{teacher.suffix}"
    save_student(state.student, teacher, saved)
    after = data.validation.scores(state.student, options.threads)
    rows = [("teacher", before)]
    if state.early is not None:
        rows.append((f"student after {_duration(state.early[1])}", state.early[0]))
    rows.append((f"student at the end, {_duration(state.place.trained_s)}", after))
    text = table(rows)
    print(f"\n{text}\n", flush=True)
    for name, ratio in (("aliases", "esr_s_mean"), ("error", "error_mean")):
        if not getattr(after, ratio) <= getattr(before, ratio):  # NaN is no better either
            print(f"the student's {name} did not fall to its teacher's; it may need more steps", flush=True)
    results: dict[str, Any] = {
        "kind": state.student.kind,
        "tones": data.identity,
        "steps": state.place.step,
        "trained_s": state.place.trained_s,
        "validation_tones": len(data.validation.numbers),
        "teacher": before.shown(),
        "early": None if state.early is None else {**state.early[0].shown(), "trained_s": state.early[1]},
        "student": after.shown(),
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    picture = out / "spectrum.png"
    draw_spectrum(student_of(teacher), state.student, data.validation, picture)
    print(f"student: {saved}\nspectrum: {picture}", flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
