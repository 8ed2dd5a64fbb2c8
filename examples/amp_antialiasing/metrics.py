"""Reports of a run: a line in the terminal, a row of metrics.csv, TensorBoard and Weights & Biases."""

from __future__ import annotations

import csv
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from validation import LEVELS_DB, Scores

COLUMNS = (
    "step",
    "epoch",
    "loss",
    *(f"esr_s_db_at_{level:g}" for level in LEVELS_DB),
    "esr_s_db",
    *(f"error_db_at_{level:g}" for level in LEVELS_DB),
    "error_db",
    "tones_per_s",
    "waiting_share",
    "trained_s",
)


def row_of(step: int, epoch: float, loss: float, scores: Scores, **rest: float) -> dict[str, float]:
    """A report: COLUMNS in order. ``rest``: tones_per_s, waiting_share, trained_s."""
    levels = [*scores.esr_s, scores.esr_s_mean, *scores.error, scores.error_mean]
    values = [step, epoch, loss, *levels, *(rest[name] for name in COLUMNS[-3:])]
    return dict(zip(COLUMNS, values, strict=True))


class Metrics:
    """Writes reports wherever they are wanted. A resumed run drops the rows after ``step`` and goes on.

    TensorBoard events are written where the package ``tensorboard`` is there. ``with_wandb`` without its
    package is said once.
    """

    def __init__(self, folder: Path, step: int, with_wandb: bool, options: Mapping[str, Any]) -> None:
        path = folder / "metrics.csv"
        kept = _rows_until(path, step) if step else []
        partial = path.with_name("metrics.csv.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        partial.replace(path)
        self._file = path.open("a", newline="")
        self._csv = csv.DictWriter(self._file, COLUMNS)
        self._board = _tensorboard(folder / "tensorboard", step)
        self._wandb = _wandb(folder, options) if with_wandb else None
        self._headed = False

    def report(self, row: Mapping[str, float]) -> None:
        if not self._headed:
            print(
                f"{'step':>8} {'epoch':>7} {'loss':>8}  {'ESR-S at -36, -18, -6 dB, mean':^33} {'error':>8}"
                f" {'tones/s':>8} {'waiting':>8}",
                flush=True,
            )
            self._headed = True
        print(line_of(row), flush=True)
        self._csv.writerow(row)
        self._file.flush()
        values = {name: value for name, value in row.items() if name != "step"}
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, int(row["step"]))
        if self._wandb is not None:
            self._wandb.log(values, step=int(row["step"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def line_of(row: Mapping[str, float]) -> str:
    levels = " ".join(f"{row[f'esr_s_db_at_{level:g}']:8.2f}" for level in LEVELS_DB)
    return (
        f"{row['step']:8,.0f} {row['epoch']:7.2f} {row['loss']:8.4f} {levels} {row['esr_s_db']:8.2f}"
        f" {row['error_db']:8.2f} {row['tones_per_s']:8.1f} {row['waiting_share']:8.1%}"
    )


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        # a row that a kill cut short has no last column
        return [row for row in csv.DictReader(file) if row["trained_s"] and int(row["step"]) <= step]


def _tensorboard(folder: Path, step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)


def _wandb(folder: Path, options: Mapping[str, Any]) -> Any:
    if importlib.util.find_spec("wandb") is None:
        print("--wandb: the package wandb is not installed; metrics.csv has it all", flush=True)
        return None
    wandb = importlib.import_module("wandb")
    name = folder.resolve().name
    # no id: folders of one name are different runs; a resumed run is another of its group
    return wandb.init(
        project="amp-antialiasing", name=name, group=name, dir=str(folder), config=dict(options)
    )
