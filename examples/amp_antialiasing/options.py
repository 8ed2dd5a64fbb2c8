"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parbake.loaders.machine import cores


@dataclass(frozen=True)
class Options:
    """The command line."""

    config: int | None
    teacher: Path | None
    use_cached_data: bool
    cached_train_path: Path
    cached_val_path: Path
    workers: int
    num_samples: int | None
    minutes: float | None
    epochs: int | None
    batch_size: int | None
    lr: float | None
    seed: int
    threads: int
    validation_tones: int
    out: Path
    resume: bool
    wandb: bool


def parsed(argv: Sequence[str], description: str | None) -> Options:
    """The options in ``argv``, hyphens or underscores in their names; exits with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what is taught")
    what.add_argument(
        "--teacher", type=Path, metavar="FILE", help="Proteus JSON or .nam; default: a diode clipper"
    )
    what.add_argument(
        "--config", type=int, choices=range(8), metavar="0..7", help="set-up of the paper; needs --teacher"
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--use-cached-data", action="store_true", help="read baked stores; bake what is missing"
    )
    for part in ("train", "val"):
        name, store = f"--cached-{part}-path", Path(f"cached_{part}.zarr")
        data.add_argument(name, type=Path, default=store, metavar="PATH", help="default %(default)s")
    data.add_argument(
        "--num-samples",
        type=_positive,
        metavar="N",
        help="training tones; default: all of the store, 1600 where there is none",
    )
    data.add_argument(
        "--workers",
        type=_natural,
        default=2,
        metavar="N",
        help="processes that run the teacher without cached data; default %(default)s",
    )
    data.add_argument(
        "--validation-tones",
        type=_positive,
        default=88,
        metavar="N",
        help="notes of each level to validate on, of the 88 that a store has; default all",
    )
    how = parser.add_argument_group("training")
    how.add_argument(
        "--minutes",
        type=_positive_number,
        metavar="M",
        help="time to train, waiting for tones included; default 25, without validation and baking",
    )
    how.add_argument(
        "--epochs",
        type=_positive,
        metavar="N",
        help="passes over the tones, instead of --minutes or as a limit beside it",
    )
    how.add_argument(
        "--batch-size", type=_positive, metavar="N", help="tones; default: the recipe's (recipes.py)"
    )
    how.add_argument(
        "--lr", type=_positive_number, help="learning rate at the beginning; default: the recipe's"
    )
    how.add_argument(
        "--seed",
        type=_natural,
        default=0,
        metavar="N",
        help="of order and places of windows; default %(default)s",
    )
    how.add_argument(
        "--threads", type=_positive, default=cores(), metavar="N", help="default: all cores, here %(default)s"
    )
    out = parser.add_argument_group("results")
    out.add_argument(
        "--out",
        type=Path,
        default=Path("amp_run"),
        metavar="DIR",
        help="checkpoint, metrics, figure, student; default %(default)s",
    )
    out.add_argument("--resume", action="store_true", help="go on where the run in DIR stopped")
    out.add_argument("--wandb", action="store_true", help="metrics to Weights & Biases, too")
    given = vars(parser.parse_args([_hyphened(word) for word in argv]))
    if given["minutes"] is None and given["epochs"] is None:
        given["minutes"] = 25.0
    return Options(**given)


def _hyphened(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def _natural(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def _positive_number(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and finite")
    return number
