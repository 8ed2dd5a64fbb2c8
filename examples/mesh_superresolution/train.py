"""Super-resolution: a network learns what interpolating a coarse simulation to a fine mesh leaves out.

python train.py config.yaml

The first run interpolates every step and bakes the result, later ones open it. Trained on the first steps,
chosen on a stretch after them, measured on the last ones. Writes a table, out/results.json, out/result.png
and the best network, out/model.pt.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flow
import models
import numpy as np
import report
import torch
from numpy.typing import NDArray
from settings import Config, Data, MistakeError, read_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import parbake
from parbake.producers import MeshPair, MeshSeries

Samples = parbake.Store | parbake.ComputedStore
Batch = dict[str, Tensor]

TRAINED, CHOSEN = 0.65, 0.75  # of the steps: those before are trained on, those between choose, the rest test


@dataclass(frozen=True)
class Stretches:
    """Steps side by side in time are nearly copies: what is held out is a stretch, never drawn."""

    train: range
    validation: range
    test: range

    @classmethod
    def of(cls, steps: int) -> Stretches:
        first, second = round(TRAINED * steps), round(CHOSEN * steps)
        if not 1 <= first < second < steps:
            raise MistakeError(f"{steps} steps are too few to train on some and test on others: give 10")
        return cls(range(first), range(first, second), range(second, steps))


# ---- data


def pair_of(data: Data) -> MeshPair:
    """The coarse and the fine series that the config names. Raises MistakeError, MeshError."""
    source, target = (series_of(data, name) for name in (data.source_resolution, data.target_resolution))
    pair = MeshPair(source=source, target=target, residual=True)
    coarse, fine = pair.source_series.nodes, pair.target_series.nodes
    if coarse >= fine:
        raise MistakeError(
            f"source_resolution {data.source_resolution} has {coarse:,} nodes, target_resolution "
            f"{data.target_resolution} has {fine:,}: the target must be the finer one"
        )
    return pair


def series_of(data: Data, resolution: str) -> Path | MeshSeries:
    """A file of ``data.dir``, or a generated series without one. Raises MistakeError."""
    if data.dir is None:
        _check_known(resolution, flow.resolutions(), "the generated flow")
        return flow.generated(resolution)
    if not data.dir.is_dir():
        raise MistakeError(f"data.dir: no folder {data.dir}; null stands for a generated flow")
    files = sorted(file for file in data.dir.iterdir() if not file.name.startswith("."))
    if not files:
        raise MistakeError(f"data.dir: no meshes in {data.dir}")
    _check_known(resolution, sorted({file.stem for file in files}), str(data.dir))
    fitting = [file for file in files if file.stem == resolution]
    if len(fitting) > 1:
        raise MistakeError(f"{data.dir}: {', '.join(f.name for f in fitting)} are all called {resolution}")
    return fitting[0]


def _check_known(resolution: str, known: Any, where: str) -> None:
    if resolution not in known:
        raise MistakeError(f"no resolution {resolution} in {where}; there are {', '.join(known)}")


def store_of(pair: MeshPair, data: Data) -> tuple[Samples, bool, float]:
    """The interpolated pair, whether it had to be baked, and the seconds that it took to have it."""
    told: list[float] = []  # seconds at which a line was said; none where nothing is baked

    def tell(now: parbake.Progress) -> None:
        if now.notice:
            print(f"note: {now.notice}", flush=True)
        elif now.finished or not told or now.seconds > told[-1] + 5:
            told.append(now.seconds)
            print(f"baking: {now.samples_done} of {now.samples_total} steps, {now.seconds:.1f} s", flush=True)

    began = time.perf_counter()
    store = parbake.cached(pair, data.cache_dir, use_cache=data.use_cache, progress=tell)
    return store, bool(told), time.perf_counter() - began


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and standard deviation of each channel of a field, [channel]."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, store: Samples, field: str) -> Scale:
        channels: Any = store.statistics[field]
        mean, std = (torch.tensor(channels["channels"][name]).float() for name in ("mean", "std"))
        return cls(mean, torch.where(std > 0, std, 1.0))

    def normalised(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std

    def restored(self, values: Tensor) -> Tensor:
        return values * self.std + self.mean


# ---- training


@dataclass(frozen=True, eq=False)
class Corrector:
    """A network together with what its inputs and outputs are scaled by."""

    network: nn.Module
    given: Scale
    residual: Scale

    def __call__(self, coarse: Tensor) -> Tensor:
        """The fine solution that ``coarse`` [batch, node, channel] suggests, in its units."""
        return coarse + self.residual.restored(self.network(self.given.normalised(coarse)))


def network_for(pair: MeshPair, config: Config) -> nn.Module:
    """An untrained network for the target's mesh. Raises MistakeError."""
    mesh, channels, sizes = pair.target_series.mesh, len(pair.used_channels), config.model
    if sizes.kind == "mlp":
        return models.MLP(mesh.points, channels, width=sizes.width, layers=sizes.layers)
    if not mesh.cells:
        raise MistakeError(
            f"{config.data.target_resolution} has points but no cells, so no edges; use kind: mlp"
        )
    return models.MessagePassing(mesh.points, mesh.cells, channels, width=sizes.width, layers=sizes.layers)


def train(
    corrector: Corrector, dataset: parbake.StoreDataset, parts: Stretches, config: Config, file: Path
) -> Iterator[dict[str, float]]:
    """Train, and yield each epoch's losses. ``file`` keeps the network that was best at validation."""
    options = config.training
    network, steps = corrector.network, Subset(dataset, parts.train)
    generator = torch.Generator().manual_seed(options.seed)
    loader: DataLoader[Batch] = DataLoader(steps, options.batch_size, shuffle=True, generator=generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.epochs * len(loader)
    )
    shifted = shifting(dataset, parts.train, options.time_shift, generator)
    best = float("inf")
    for epoch in range(1, options.epochs + 1):
        losses = []
        for batch in loader:
            wanted = corrector.residual.normalised(shifted(batch) - batch["coarse_interp"])
            predicted = network(corrector.given.normalised(batch["coarse_interp"]))
            loss = (predicted - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        validation = validation_loss(corrector, dataset, parts.validation)
        if validation < best:
            best = validation
            torch.save({"network": network.state_dict(), "epoch": epoch, "validation": best}, file)
        yield {"epoch": epoch, "train": float(np.mean(losses)), "validation": validation}


def shifting(
    dataset: parbake.StoreDataset, steps: range, most: int, generator: torch.Generator
) -> Callable[[Batch], Tensor]:
    """What gives a batch's fine solutions, each of a step at most ``most`` before or after its own."""
    if not most:
        return lambda batch: batch["fine_features"]

    def shifted(batch: Batch) -> Tensor:
        drawn = torch.randint(-most, most + 1, batch["index"].shape, generator=generator)
        near = (batch["index"] + drawn).clamp(steps.start, steps.stop - 1)
        return torch.stack([dataset[i]["fine_features"] for i in near.tolist()])

    return shifted


@torch.no_grad()
def validation_loss(corrector: Corrector, dataset: parbake.StoreDataset, steps: range) -> float:
    """Mean squared error of the residual, normalised as in training."""
    errors = []
    for i in steps:
        sample = dataset[i]
        error = corrector(sample["coarse_interp"][None])[0] - sample["fine_features"]
        errors.append((error / corrector.residual.std).square().mean().item())
    return float(np.mean(errors))


@torch.no_grad()
def predictions(corrector: Corrector, coarse: NDArray[np.float32]) -> NDArray[np.float32]:
    """Step by step, so that memory does not grow with their number, [step, node, channel]."""
    return np.concatenate([corrector(torch.from_numpy(step)[None]).numpy() for step in coarse])


# ---- all of it


def run(config: Config) -> dict[str, Any]:
    """Train and test as ``config`` says; writes into ``config.out`` and returns what results.json holds."""
    torch.manual_seed(config.training.seed)
    pair = pair_of(config.data)
    where = config.data.dir or "generated flow (data.dir is null)"
    names = f"{config.data.source_resolution} -> {config.data.target_resolution}"
    source, target = pair.source_series, pair.target_series
    print(f"{where}: {names}, {source.nodes:,} -> {target.nodes:,} nodes, {', '.join(pair.used_channels)}")
    parts = Stretches.of(len(pair))
    network = network_for(pair, config)

    store, baked, seconds = store_of(pair, config.data)
    how = (
        "baked" if baked else "opened" if config.data.use_cache else "no cache: each step computed when read,"
    )
    print(f"{how} in {seconds:.2f} s: {store.path}", flush=True)

    # of the training steps alone: not even two numbers a channel of the others reach the network
    seen = store.first(len(parts.train))
    corrector = Corrector(network, Scale.of(seen, "coarse_interp"), Scale.of(seen, "residual"))
    dataset = parbake.StoreDataset(store, fields=("coarse_interp", "fine_features"), with_index=True)
    config.out.mkdir(parents=True, exist_ok=True)
    file = config.out / "model.pt"
    size = sum(parameter.numel() for parameter in network.parameters())
    print(f"{config.model.kind}: {size:,} parameters; {len(parts.train)} steps to train, "
          f"{len(parts.validation)} to choose, {len(parts.test)} to test")  # fmt: skip
    began, epochs, every = time.perf_counter(), [], max(1, config.training.epochs // 10)
    for epoch in train(corrector, dataset, parts, config, file):
        epochs.append(epoch)
        if epoch["epoch"] % every == 0 or epoch["epoch"] == config.training.epochs:
            print(f"epoch {epoch['epoch']:.0f}: train {epoch['train']:.4f}, validation "
                  f"{epoch['validation']:.4f}, {time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    trained_s = time.perf_counter() - began
    kept = torch.load(file, weights_only=True)
    network.load_state_dict(kept["network"])

    held_out = store.read(parts.test)
    coarse, fine = held_out["coarse_interp"], held_out["fine_features"]
    fields: Any = store.statistics
    scale = np.array(fields["fine_features"]["channels"]["std"])
    predicted = predictions(corrector, coarse)
    ways = {
        "interpolation": coarse,
        "interpolation + mean residual": coarse
        + store.read(parts.train, ("residual",))["residual"].mean(axis=0),
        config.model.kind: predicted,
    }
    errors = {name: report.relative_errors(values, fine, scale) for name, values in ways.items()}
    print(f"held out: {held_out['time'][0]:g} to {held_out['time'][-1]:g} s")
    print(report.table(errors, pair.used_channels))
    results = {
        "nodes": {"source": source.nodes, "target": target.nodes},
        "channels": [*pair.used_channels, "all"],
        "relative_l2_error": {name: values.tolist() for name, values in errors.items()},
        "less_than_interpolation": 1 - errors[config.model.kind][-1] / errors["interpolation"][-1],
        "held_out_times_s": held_out["time"].tolist(),
        "baked": baked,
        "data_s": seconds,
        "training_s": trained_s,
        "best_epoch": kept["epoch"],
        "epochs": epochs,
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
    }
    (config.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    channel = int(errors["interpolation"][:-1].argmax())
    step = len(parts.test) // 2
    shown = report.Step(held_out["time"][step], coarse[step], fine[step], predicted[step])
    print(f"written: {', '.join(str(config.out / name) for name in ('results.json', 'model.pt'))}")
    picture(config, shown, pair, channel)
    return results


def picture(config: Config, step: report.Step, pair: MeshPair, channel: int) -> None:
    """The figure, or why there is none."""
    mesh, file = pair.target_series.mesh, config.out / "result.png"
    if mesh.dim != 2 or not mesh.cells:
        print("no picture: only meshes of two dimensions with cells are drawn")
        return
    names = (pair.used_channels[channel], config.model.kind.replace("_", " "))
    try:
        report.draw(file, step, pair.source_series, pair.target_series, channel, names)
        print(f"written: {file}")
    except ImportError as error:
        print(f"no picture ({error}): pip install 'parbake[plot]'")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="a YAML file; config.yaml is one to begin with")
    options = parser.parse_args(arguments)
    try:
        run(read_config(options.config))
    except MistakeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (parbake.ParbakeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
