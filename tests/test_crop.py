"""Crops: the same random window in all fields, or a fixed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from bakery import refusal
from torch.utils.data import DataLoader

from parbake.loaders.dataset import StoreDataset
from parbake.loaders.order import window_starts
from parbake.producers.bake import bake
from parbake.producers.computed import ComputedStore
from parbake.store.layout import Field

SAMPLES, TIME = 12, 50


@dataclass(frozen=True)
class Counting:
    """Fields whose values say where they stand: 100 times the sample and the place along time."""

    name = "counting"
    version = 1

    def schema(self) -> Mapping[str, Field]:
        return {
            "x": Field((TIME, 1), "float32", ("time", "channel")),
            "y": Field((2, TIME), ">f4", ("channel_y", "time")),
            "f0": Field((), "float32", ()),
        }

    def invalidation_keys(self) -> Mapping[str, Any]:
        return {}

    def __len__(self) -> int:
        return SAMPLES

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, np.ndarray]:
        f0 = np.arange(start, stop, dtype=np.float32) * 100
        x = (f0[:, None] + np.arange(TIME, dtype=np.float32))[..., None]
        return {"x": x, "y": np.stack([x[..., 0], -x[..., 0]], 1), "f0": f0}


@pytest.fixture(scope="module", params=["raw", "lz4", "computed"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "computed":
        return ComputedStore(Counting())
    path = tmp_path_factory.mktemp("crop") / "train.zarr"
    return bake(Counting(), path, codec=request.param, progress=False)


def starts_of(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Where each window begins, after a check of all that is in it."""
    starts = batch["x"][:, 0, 0] - batch["f0"]
    wanted = batch["f0"][:, None] + starts[:, None] + torch.arange(batch["x"].shape[1])
    assert torch.equal(batch["x"], wanted[..., None])
    assert torch.equal(batch["y"], torch.stack([wanted, -wanted], 1))
    return starts


def test_a_random_window_is_the_same_in_all_fields(store: Any) -> None:
    dataset = StoreDataset(store, crop={"time": 8})
    assert dataset.shapes == {"x": (8, 1), "y": (2, 8), "f0": ()}
    drawn = torch.cat([starts_of(batch) for _ in range(40) for batch in DataLoader(dataset, batch_size=5)])
    assert set(drawn.tolist()) == set(range(43))
    assert starts_of({name: value[None] for name, value in dataset[7].items()}).shape == (1,)


def test_torchs_seed_determines_the_windows(store: Any) -> None:
    dataset = StoreDataset(store, crop={"time": 8})

    def windows(seed: int) -> list[float]:
        torch.manual_seed(seed)
        loader = DataLoader(dataset, batch_size=5, num_workers=2)
        return torch.cat([starts_of(batch) for batch in loader]).tolist()

    assert windows(1) == windows(1) != windows(2)


def test_without_a_random_window_no_random_number_is_drawn(store: Any) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    for crop in (None, {"time": slice(0, 4)}):
        dataset = StoreDataset(store, crop=crop)
        dataset.__getitems__([0, 1])
        assert dataset[2] is not None
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize(("part", "start", "length"), [(slice(3, 9), 3, 6), (slice(-5, None), 45, 5)])
def test_a_slice_is_the_same_part_of_every_sample(store: Any, part: slice, start: int, length: int) -> None:
    batch = next(iter(DataLoader(StoreDataset(store, crop={"time": part}), batch_size=12)))
    assert starts_of(batch).tolist() == [start] * 12
    assert batch["x"].shape == (12, length, 1)


def test_fields_without_the_dimension_come_whole(store: Any) -> None:
    x, f0 = StoreDataset(store, ("x", "f0"), as_tuple=True, crop={"time": TIME})[3]
    assert x.shape == (TIME, 1)
    assert f0 == 300


@pytest.mark.parametrize(
    ("crop", "said"),
    [
        ({"place": 3}, "no field has a dimension 'place'; there are channel, channel_y, time"),
        ({"time": 51}, "length of 'time'=51; 1 to 50 is possible"),
        ({"time": 0}, "1 to 50"),
        ({"time": 2.5}, "no integer"),
        ({"time": slice(0, 8, 2)}, "the step is 1"),
        ({"time": slice(8, 8)}, "no window of 50"),
        ({}, "give one dimension"),
        ({"time": 2, "channel": 1}, "give one dimension"),
        (8, "give one dimension"),
    ],
)
def test_what_is_no_crop_is_refused(crop: Any, said: str) -> None:
    assert said in refusal(lambda: StoreDataset(ComputedStore(Counting()), crop=crop))


def test_starts_are_uniform_and_a_function_of_draw_and_sample() -> None:
    samples = np.arange(100_000)
    starts = window_starts(samples, 10, 7)
    counts = np.bincount(starts, minlength=10)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 33  # chi-squared of 9 degrees, 1 in 10,000
    assert (window_starts(samples[::-7], 10, 7) == starts[::-7]).all()
    other = window_starts(samples, 10, 8)
    assert abs((other == starts).mean() - 0.1) < 0.01
    assert window_starts(samples[:5], 1, 7).tolist() == [0] * 5
