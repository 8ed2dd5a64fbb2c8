"""StoreDataset: the bits of the store, in every way that torch's DataLoader asks for them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading import assert_same
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    default_collate,
    random_split,
)
from torch.utils.data._utils.collate import collate, default_collate_fn_map
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.data.distributed import DistributedSampler

from parbake.errors import ParbakeError, RecipeError, StaleStoreError, StoreNotFoundError
from parbake.loaders import slots
from parbake.loaders.dataset import StoreDataset
from parbake.loaders.samples import DictSample, TupleSample
from parbake.producers.bake import bake
from parbake.store.layout import Field
from parbake.store.store import Store, open_store

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SAMPLES = 301  # odd: neither chunks nor batches divide it
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "x": ("<f4", (7, 3)),
    "y": ("<f4", (7, 3)),  # of one shape with x: mixed up fields must show
    "wave": ("<f4", (2501,)),  # 4 samples a chunk; the others lie in one
    "double": ("<f8", (2, 5)),
    "half": ("<f2", (19, 5)),
    "big": (">f4", (23,)),
    "count": ("<i2", (11, 3)),
    "pixel": ("|u1", (71,)),
    "mask": ("|b1", (67,)),
    "square": ("<i4", (5, 5)),
    "f0": ("<f4", ()),
    "dB": (">f8", ()),
}
DIMS = "abc"
WORKERS = [pytest.param(0, id="in-process"), pytest.param(3, id="3-workers")]


def values_of(samples: int) -> dict[str, np.ndarray]:
    """The values of every field, native byte order: what the store must give back."""
    rng = np.random.default_rng(11)
    values = {}
    for name, (dtype, shape) in SHAPES.items():
        native = np.dtype(dtype).newbyteorder("=")
        if native.kind == "f":
            values[name] = rng.standard_normal((samples, *shape)).astype(native)
        else:
            high = 2 if native.kind == "b" else 120
            values[name] = rng.integers(0, high, (samples, *shape)).astype(native)
    return values


@dataclass(frozen=True)
class Numbers:
    """A producer of ``values_of``."""

    samples: int = SAMPLES
    gain: float = 1.0
    name: str = "numbers"
    version: int = 1

    def schema(self) -> Mapping[str, Field]:
        return {
            name: Field(shape, dtype, tuple(f"{name}_{axis}" for axis in DIMS[: len(shape)]))
            for name, (dtype, shape) in SHAPES.items()
        }

    def invalidation_keys(self) -> Mapping[str, Any]:
        return {"gain": self.gain}

    def __len__(self) -> int:
        return self.samples

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> Mapping[str, np.ndarray]:
        values = values_of(self.samples)
        return {name: values[name][start:stop].astype(SHAPES[name][0]) for name in fields}


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    return values_of(SAMPLES)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One store per codec."""
    folder = tmp_path_factory.mktemp("stores")
    made = {codec: folder / f"{codec}.zarr" for codec in ("raw", "lz4")}
    for codec, path in made.items():
        bake(Numbers(), path, codec=codec, progress=False).close()
    return made


@pytest.fixture(scope="module", params=["raw", "lz4"])
def path(request: pytest.FixtureRequest, paths: dict[str, Path]) -> Path:
    return paths[request.param]


@pytest.fixture(scope="module")
def lz4(paths: dict[str, Path]) -> Path:
    return paths["lz4"]


def bits(tensor: torch.Tensor) -> tuple[np.dtype, tuple[int, ...], bytes]:
    array = tensor.detach().resolve_conj().numpy()
    return array.dtype, array.shape, array.tobytes()


def assert_rows(tensor: torch.Tensor, values: np.ndarray, rows: Any) -> None:
    """``tensor`` holds ``values[rows]``, bit for bit, of the same dtype and shape."""
    wanted = np.asarray(values[rows])
    assert bits(tensor) == (wanted.dtype, wanted.shape, wanted.tobytes())


def plain(samples: Sequence[Any]) -> list[Any]:
    """Samples as plain dicts or tuples of tensors of their own."""
    return [
        {key: value.clone() for key, value in sample.items()}
        if isinstance(sample, dict)
        else tuple(value.clone() for value in sample)
        for sample in samples
    ]


def identity(samples: list[Any]) -> list[Any]:
    return samples


@pytest.fixture(autouse=True, params=[pytest.param(1, id="slots"), pytest.param(1 << 20, id="fresh")])
def reused_min(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches lie in slots too, or none does."""
    monkeypatch.setattr(slots, "_REUSED_MIN", request.param)


# ---- single samples


@pytest.mark.parametrize(
    "index", [0, 150, SAMPLES - 1, -1, -SAMPLES, np.int64(7), np.uint8(7), torch.tensor(9)]
)
def test_a_sample_is_a_dict_of_the_stored_bits(path: Path, values: dict[str, np.ndarray], index: Any) -> None:
    sample = StoreDataset(path)[index]
    assert type(sample) is dict
    assert list(sample) == list(open_store(path))
    assert set(sample) == set(SHAPES)
    for name, tensor in sample.items():
        assert_rows(tensor, values[name], int(index))


def test_a_tuple_keeps_the_order_of_fields(path: Path, values: dict[str, np.ndarray]) -> None:
    names = ("y", "dB", "x", "big")
    sample = StoreDataset(path, names, as_tuple=True)[17]
    assert type(sample) is tuple
    for name, tensor in zip(names, sample, strict=True):
        assert_rows(tensor, values[name], 17)


def test_length_and_end_of_iteration(lz4: Path) -> None:
    ds = StoreDataset(lz4, ["f0"])
    assert len(ds) == SAMPLES
    assert len(list(ds)) == SAMPLES


@pytest.mark.parametrize("index", [SAMPLES, -SAMPLES - 1, 2**40])
def test_beyond_the_end_is_an_index_error(lz4: Path, index: int) -> None:
    ds = StoreDataset(lz4, ["f0"])
    with pytest.raises(IndexError, match=str(SAMPLES)):
        ds[index]
    with pytest.raises(IndexError, match=str(SAMPLES)):
        ds.__getitems__([0, index])


@pytest.mark.parametrize("index", [slice(0, 3), [1, 2], 1.0, "x", None, np.arange(2)])
def test_only_an_integer_indexes_a_dataset(lz4: Path, index: Any) -> None:
    with pytest.raises(TypeError):
        StoreDataset(lz4)[index]


def test_a_slice_is_refused_with_the_way_out(lz4: Path) -> None:
    with pytest.raises(TypeError, match=r"one integer, not by slice.*Subset"):
        StoreDataset(lz4)[0:3]  # type: ignore[index]


# ---- batches in one process


@pytest.mark.parametrize(
    "indices",
    [
        [5, 3, 300, 3, 3, -1, 0],
        range(40, 20, -3),
        np.array([8, 1, 200], np.int16),
        torch.tensor([300, 2, 2]),
        [np.int64(4), np.uint8(4), torch.tensor(299)],
        (1,),
    ],
)
def test_a_batch_is_read_in_the_order_asked_for(
    path: Path, values: dict[str, np.ndarray], indices: Any
) -> None:
    rows = [int(i) for i in indices]
    for name, tensor in default_collate(StoreDataset(path).__getitems__(indices)).items():
        assert_rows(tensor, values[name], rows)
    names = ("y", "x", "f0")
    batch = default_collate(StoreDataset(path, names, as_tuple=True).__getitems__(indices))
    for name, tensor in zip(names, batch, strict=True):
        assert_rows(tensor, values[name], rows)


@pytest.mark.parametrize("indices", [[1.0], ["x"], [[1, 2]], np.array([0.5])])
def test_indices_that_are_no_integers_are_refused(lz4: Path, indices: Any) -> None:
    with pytest.raises(TypeError):
        StoreDataset(lz4).__getitems__(indices)


def test_no_indices_give_no_samples(lz4: Path) -> None:
    assert StoreDataset(lz4).__getitems__([]) == []


def test_a_batch_agrees_with_its_single_samples(lz4: Path) -> None:
    for as_tuple in (False, True):
        ds = StoreDataset(lz4, as_tuple=as_tuple, with_index=True)
        rows = [9, 2, 2, 300]
        assert_same(plain(ds.__getitems__(rows)), [ds[i] for i in rows])


@pytest.mark.parametrize("as_tuple", [False, True])
def test_default_collation_takes_the_batch_without_a_copy(lz4: Path, as_tuple: bool) -> None:
    samples = StoreDataset(lz4, as_tuple=as_tuple, with_index=True).__getitems__([4, 0, 9])
    keys = range(len(samples[0])) if as_tuple else list(samples[0])
    places = [samples[0][key].data_ptr() for key in keys]
    wanted = default_collate(plain(samples))
    batch = default_collate(samples)
    assert_same(batch, wanted)
    assert [batch[key].data_ptr() for key in keys] == places


@pytest.mark.parametrize("as_tuple", [False, True])
def test_collation_in_inference_mode(lz4: Path, as_tuple: bool) -> None:
    with torch.inference_mode():
        samples = StoreDataset(lz4, as_tuple=as_tuple).__getitems__([4, 0, 9])
        wanted = default_collate(plain(samples))
        assert_same(default_collate(samples), wanted)
        assert_same(default_collate(samples), wanted)


def test_tensors_are_writable_and_private(path: Path, values: dict[str, np.ndarray]) -> None:
    ds = StoreDataset(path)
    single, batch = ds[3], default_collate(ds.__getitems__([3, 3, 4]))
    for name in SHAPES:
        single[name].fill_(1)
        batch[name][0].fill_(0)
        assert_rows(batch[name][1:], values[name], [3, 4])
    for name, tensor in ds[3].items():
        assert_rows(tensor, values[name], 3)


# ---- samples that somebody changed between reading and collating

Change = Callable[[list[Any]], Any]


def replace_by_other_values(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["x"] = sample["x"] * 2
    return samples


def replace_one_by_its_clone_changed(samples: list[Any]) -> list[Any]:
    samples[2]["x"] = samples[2]["x"].clone() + 1
    return samples


def replace_all_by_one(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["x"] = samples[1]["x"]
    return samples


def swap_fields(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["x"], sample["y"] = sample["y"], sample["x"]
    return samples


def swap_values_of_two(samples: list[Any]) -> list[Any]:
    samples[0]["x"], samples[3]["x"] = samples[3]["x"], samples[0]["x"]
    return samples


def same_bytes_of_another_dtype(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["x"] = sample["x"].view(torch.int32)
    return samples


def add_a_key(samples: list[Any]) -> list[Any]:
    for number, sample in enumerate(samples):
        sample["label"] = number
    return samples


def add_a_key_to_the_last(samples: list[Any]) -> list[Any]:
    samples[-1]["label"] = torch.tensor(1)
    return samples


def delete_a_key(samples: list[Any]) -> list[Any]:
    for sample in samples:
        del sample["x"]
    return samples


def delete_a_key_of_the_last(samples: list[Any]) -> list[Any]:
    del samples[-1]["x"]
    return samples


def rename_a_key(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["z"] = sample.pop("x")
    return samples


def reorder_keys(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["x"] = sample.pop("x")
    return samples


def drop_the_last(samples: list[Any]) -> list[Any]:
    return samples[:-1]


def drop_the_first(samples: list[Any]) -> list[Any]:
    return samples[1:]


def reverse(samples: list[Any]) -> list[Any]:
    return samples[::-1]


def repeat_one(samples: list[Any]) -> list[Any]:
    samples[1] = samples[0]
    return samples


def repeat_all(samples: list[Any]) -> list[Any]:
    return samples + samples


def plain_in_the_middle(samples: list[Any]) -> list[Any]:
    samples[1] = dict(samples[1]) if isinstance(samples[1], dict) else tuple(samples[1])
    return samples


def another_thing_in_the_middle(samples: list[Any]) -> list[Any]:
    samples[1] = object()
    return samples


def wrap_in_pairs(samples: list[Any]) -> list[Any]:
    return [(sample, number) for number, sample in enumerate(samples)]


def wrap_in_dicts(samples: list[Any]) -> list[Any]:
    return [{"inner": sample, "number": number} for number, sample in enumerate(samples)]


def transpose_by_data(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["square"].data = sample["square"].data.t()
    return samples


def reshape_by_data(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["x"].data = sample["x"].data.unsqueeze(0)
    return samples


def crop_by_data(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["wave"].data = sample["wave"].data[:100]
    return samples


def other_data(samples: list[Any]) -> list[Any]:
    samples[3]["x"].data = torch.ones(7, 3)
    return samples


def other_dtype_by_data(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["x"].data = sample["x"].data.view(torch.int32)
    return samples


def reshape_in_place(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["x"].unsqueeze_(0)
    return samples


def transpose_in_place(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["square"].t_()
    return samples


def set_in_place(samples: list[Any]) -> list[Any]:
    samples[0]["x"].set_(torch.full((7, 3), 5.0))
    return samples


def scale_in_place(samples: list[Any]) -> list[Any]:
    for number, sample in enumerate(samples):
        sample["x"].mul_(number)
    return samples


def write_through_numpy(samples: list[Any]) -> list[Any]:
    samples[2]["x"].numpy()[:] = 8
    return samples


def require_gradients(samples: list[Any]) -> list[Any]:
    for sample in samples:
        sample["x"].requires_grad_()
    return samples


ON_ANY = [
    drop_the_last,
    drop_the_first,
    reverse,
    repeat_one,
    repeat_all,
    plain_in_the_middle,
    another_thing_in_the_middle,
    wrap_in_pairs,
    wrap_in_dicts,
]
ON_DICTS: list[Change] = [
    replace_by_other_values,
    replace_one_by_its_clone_changed,
    replace_all_by_one,
    swap_fields,
    swap_values_of_two,
    same_bytes_of_another_dtype,
    add_a_key,
    add_a_key_to_the_last,
    delete_a_key,
    delete_a_key_of_the_last,
    rename_a_key,
    reorder_keys,
    transpose_by_data,
    reshape_by_data,
    crop_by_data,
    other_data,
    other_dtype_by_data,
    reshape_in_place,
    transpose_in_place,
    set_in_place,
    scale_in_place,
    write_through_numpy,
    require_gradients,
]


def outcome(samples: Any) -> Any:
    try:
        return default_collate(samples)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("change", [*ON_ANY, *ON_DICTS])
def test_changed_dicts_collate_as_plain_ones_do(lz4: Path, change: Change) -> None:
    samples = StoreDataset(lz4).__getitems__([4, 7, 7, 300, 1])
    wanted = outcome(change(plain(samples)))
    assert_same(outcome(change(samples)), wanted)


@pytest.mark.parametrize("change", ON_ANY)
def test_changed_lists_of_tuples_collate_as_plain_ones_do(lz4: Path, change: Change) -> None:
    samples = StoreDataset(lz4, as_tuple=True).__getitems__([4, 7, 7, 300, 1])
    wanted = outcome(change(plain(samples)))
    assert_same(outcome(change(samples)), wanted)


@pytest.mark.parametrize("as_tuple", [False, True])
def test_two_batches_in_one_list(lz4: Path, as_tuple: bool) -> None:
    ds = StoreDataset(lz4, as_tuple=as_tuple)
    first, second = ds.__getitems__([4, 7]), ds.__getitems__([1, 0])
    wanted = default_collate(plain(first + second))
    mixed = default_collate(plain([first[0], second[1]]))
    assert_same(default_collate([first[0], second[1]]), mixed)
    assert_same(default_collate(first + second), wanted)


def test_fields_of_one_tuple_swapped(lz4: Path) -> None:
    samples = StoreDataset(lz4, ("x", "y"), as_tuple=True).__getitems__([4, 7])
    swapped = [TupleSample((y, x)) for x, y in samples]
    for new, old in zip(swapped, samples, strict=True):
        new._batch = old._batch
    wanted = default_collate([(y.clone(), x.clone()) for x, y in samples])
    assert_same(default_collate(swapped), wanted)


class Changing(Dataset[Any]):
    """A wrapper that changes what it passes on, as users write them."""

    def __init__(self, dataset: StoreDataset, change: Change) -> None:
        self.dataset, self.change = dataset, change

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.change(plain([self.dataset[index]]))[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return self.change(self.dataset.__getitems__(indices))


class Unchanging(Changing):
    """The same by torch's plain way, one sample at a time."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return self.change(plain([self.dataset[i] for i in indices]))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(
    "change",
    [replace_by_other_values, add_a_key, delete_a_key, reverse, drop_the_last, repeat_all, scale_in_place],
)
def test_a_wrapper_that_changes_samples(lz4: Path, workers: int, change: Change) -> None:
    ds = StoreDataset(lz4, ("x", "y", "f0"))
    options: dict[str, Any] = {"batch_size": 76, "num_workers": workers}
    options["multiprocessing_context"] = "fork" if workers else None
    wanted = list(DataLoader(Unchanging(ds, change), batch_size=76))
    assert_same(list(DataLoader(Changing(ds, change), **options)), wanted)


# ---- who else holds samples


@pytest.mark.parametrize(
    ("keep", "x_of", "row"),
    [
        (lambda samples: samples[0], lambda kept: kept["x"], 4),
        (lambda samples: samples[2], lambda kept: kept["x"], 9),
        (lambda samples: samples[0]["x"], lambda kept: kept, 4),
        (lambda samples: samples[2]["x"].numpy(), torch.from_numpy, 9),
        (lambda samples: samples[1]["x"][2:], lambda kept: kept, (7, slice(2, None))),
        (lambda samples: samples[1]["x"].detach(), lambda kept: kept, 7),
        (list, lambda kept: kept[1]["x"], 7),
    ],
    ids=["first sample", "last sample", "value", "array", "part", "detached", "all samples"],
)
def test_what_somebody_keeps_does_not_change_with_the_batch(
    lz4: Path, values: dict[str, np.ndarray], keep: Callable[[Any], Any], x_of: Callable[[Any], Any], row: Any
) -> None:
    samples = StoreDataset(lz4, ("x", "y")).__getitems__([4, 7, 9])
    kept = keep(samples)
    batch = default_collate(samples)
    assert_rows(batch["x"], values["x"], [4, 7, 9])
    batch["x"].zero_()
    assert_rows(x_of(kept), values["x"], row)


@pytest.mark.parametrize("as_tuple", [False, True])
def test_collating_twice_gives_two_batches(lz4: Path, as_tuple: bool) -> None:
    samples = StoreDataset(lz4, ("x", "f0"), as_tuple=as_tuple).__getitems__([4, 7])
    wanted = default_collate(plain(samples))
    first, second = default_collate(samples), default_collate(samples)
    for tensor in first if as_tuple else first.values():
        tensor.zero_()
    assert_same(second, wanted)


def test_collating_again_what_was_changed_is_refused(lz4: Path) -> None:
    samples = StoreDataset(lz4, ("x", "f0")).__getitems__([4, 7])
    default_collate(samples)["x"].zero_()
    with pytest.raises(ParbakeError, match="changed in place; change a clone"):
        default_collate(samples)


def test_somebodys_own_rule_for_tensors_holds(lz4: Path) -> None:
    def ends(batch: list[torch.Tensor], *, collate_fn_map: Any) -> torch.Tensor:
        return torch.stack([tensor.reshape(-1)[-1] for tensor in batch])

    own_map = {**default_collate_fn_map, torch.Tensor: ends}
    samples = StoreDataset(lz4, ("x", "f0")).__getitems__([4, 7])
    wanted = collate(plain(samples), collate_fn_map=own_map)
    assert wanted["x"].shape == (2,)
    assert_same(collate(samples, collate_fn_map=own_map), wanted)
    assert_same(collate(samples, collate_fn_map={torch.Tensor: ends}), wanted)


# ---- samples as dicts and tuples


def test_samples_are_dicts_and_tuples(lz4: Path) -> None:
    [sample] = StoreDataset(lz4, ("x", "f0")).__getitems__([4])
    assert isinstance(sample, dict)
    assert isinstance(DictSample(a=1), dict)
    assert DictSample([("a", 1)]) == {"a": 1}
    [pair] = StoreDataset(lz4, ("x", "f0"), as_tuple=True).__getitems__([4])
    assert isinstance(pair, tuple)
    assert TupleSample(i for i in range(3)) == (0, 1, 2)
    assert type(copy.copy(sample)) is dict
    assert type(copy.copy(pair)) is tuple
    assert copy.copy(sample)["x"] is sample["x"]
    assert copy.copy(pair)[0] is pair[0]


@pytest.mark.parametrize("as_tuple", [False, True])
def test_pinning_reaches_every_tensor(lz4: Path, as_tuple: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        pinned.append(self.data_ptr())
        return self.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    samples = StoreDataset(lz4, ("x", "f0"), as_tuple=as_tuple).__getitems__([4, 7])
    result = pin_memory(samples)
    assert len(set(pinned)) == 4
    for one, other in zip(result, samples, strict=True):
        assert_same(*(dict(s) if isinstance(s, dict) else tuple(s) for s in (one, other)))


@pytest.mark.parametrize("as_tuple", [False, True])
def test_a_pickled_sample_carries_itself_alone(
    lz4: Path, values: dict[str, np.ndarray], as_tuple: bool
) -> None:
    samples = StoreDataset(lz4, ("wave", "f0"), as_tuple=as_tuple).__getitems__(range(64))
    text = pickle.dumps(samples[9])
    assert len(text) < 2 * 4 * 2501
    back = pickle.loads(text)
    assert type(back) is (tuple if as_tuple else dict)
    assert_rows(back[0 if as_tuple else "wave"], values["wave"], 9)
    assert len(pickle.dumps(samples)) < 64 * 2 * 4 * 2501
    again = copy.deepcopy(samples[9])
    assert type(again) is type(back)
    assert again[0 if as_tuple else "wave"].untyped_storage().nbytes() == 4 * 2501


@pytest.mark.parametrize("as_tuple", [False, True])
def test_samples_themselves_through_workers(lz4: Path, values: dict[str, np.ndarray], as_tuple: bool) -> None:
    ds = StoreDataset(lz4, ("x", "f0"), as_tuple=as_tuple, with_index=True)
    loader = DataLoader(
        ds, batch_size=50, num_workers=3, collate_fn=identity, multiprocessing_context="fork", shuffle=True
    )
    x, f0, index = (0, 1, 2) if as_tuple else ("x", "f0", "index")
    rows = []
    for samples in loader:
        assert {type(sample) for sample in samples} == {tuple if as_tuple else dict}
        # all rows of a batch in one shared memory, not one copy of the batch for each
        assert len({sample[x].untyped_storage().data_ptr() for sample in samples}) == 1
        for sample in samples:
            rows.append(int(sample[index]))
            assert_rows(sample[x], values["x"], rows[-1])
            assert_rows(sample[f0], values["f0"], rows[-1])
    assert sorted(rows) == list(range(SAMPLES))


def lie_in_shared_memory(samples: list[Any]) -> list[bool]:
    return [bool(tensor.is_shared()) for tensor in default_collate(samples).values()]


def test_workers_read_into_shared_memory(lz4: Path) -> None:
    ds = StoreDataset(lz4, ("x", "wave", "f0"))
    loader = DataLoader(
        ds, batch_size=301, num_workers=1, collate_fn=lie_in_shared_memory, multiprocessing_context="fork"
    )
    assert list(loader) == [[True, True, True]]
    assert lie_in_shared_memory(ds.__getitems__([1])) == [False, False, False]


# ---- DataLoader


@pytest.mark.parametrize("as_tuple", [False, True], ids=["dict", "tuple"])
@pytest.mark.parametrize("method", [None, "fork", "spawn", "forkserver"])
def test_two_epochs_give_every_sample_bit_for_bit(
    lz4: Path, values: dict[str, np.ndarray], method: str | None, as_tuple: bool
) -> None:
    names = tuple(SHAPES)
    loader = DataLoader(
        StoreDataset(lz4, names, as_tuple=as_tuple, with_index=True),
        batch_size=32,
        shuffle=True,
        num_workers=3 if method else 0,
        multiprocessing_context=method,
        persistent_workers=method is not None,
        generator=torch.Generator().manual_seed(5),
    )
    orders = []
    for _ in range(2):
        kept = list(loader)  # compared at the end of the epoch: a batch never changes under its owner
        rows = [batch[-1].tolist() if as_tuple else batch["index"].tolist() for batch in kept]
        for batch, numbers in zip(kept, rows, strict=True):
            assert type(batch) is (list if as_tuple else dict)
            for key, name in enumerate(names):
                assert_rows(batch[key if as_tuple else name], values[name], numbers)
        orders.append([number for numbers in rows for number in numbers])
        assert sorted(orders[-1]) == list(range(SAMPLES))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("as_tuple", [False, True], ids=["dict", "tuple"])
def test_batches_equal_those_of_plain_samples(path: Path, workers: int, as_tuple: bool) -> None:
    ds = StoreDataset(path, as_tuple=as_tuple)
    wanted = [default_collate([ds[i] for i in range(k, min(k + 64, SAMPLES))]) for k in range(0, SAMPLES, 64)]
    context = "fork" if workers else None
    loader = DataLoader(ds, batch_size=64, num_workers=workers, multiprocessing_context=context)
    assert_same(list(loader), wanted)


def collated_by_hand(samples: list[Any]) -> dict[str, Any]:
    """A user's own collation: one field stacked, the other a list."""
    return {"x": torch.stack([s["x"] for s in samples]), "f0": [float(s["f0"]) for s in samples]}


def collated_then_scaled(samples: list[Any]) -> dict[str, Any]:
    batch = default_collate(samples)
    batch["x"].mul_(2)
    return batch


@pytest.mark.parametrize("workers", WORKERS)
def test_own_collation(lz4: Path, values: dict[str, np.ndarray], workers: int) -> None:
    options: dict[str, Any] = {"batch_size": 100, "num_workers": workers, "drop_last": True}
    options["multiprocessing_context"] = "fork" if workers else None
    ds = StoreDataset(lz4, ("x", "f0"))
    for k, batch in enumerate(DataLoader(ds, collate_fn=collated_by_hand, **options)):
        rows = slice(100 * k, 100 * k + 100)
        assert_rows(batch["x"], values["x"], rows)
        assert batch["f0"] == values["f0"][rows].tolist()
    for k, batch in enumerate(DataLoader(ds, collate_fn=collated_then_scaled, **options)):
        assert_rows(batch["x"], values["x"] * 2, slice(100 * k, 100 * k + 100))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("as_tuple", [False, True], ids=["dict", "tuple"])
def test_datasets_and_samplers_of_torch(
    lz4: Path, values: dict[str, np.ndarray], workers: int, as_tuple: bool
) -> None:
    ds = StoreDataset(lz4, ("x", "y"), as_tuple=as_tuple, with_index=True)
    context = "fork" if workers else None

    def rows_read(dataset: Dataset[Any], **options: Any) -> list[int]:
        rows: list[int] = []
        loader = DataLoader(dataset, num_workers=workers, multiprocessing_context=context, **options)
        for batch in loader:
            x, y, index = batch if as_tuple else batch.values()
            assert_rows(x, values["x"], index.numpy())
            assert_rows(y, values["y"], index.numpy())
            rows += index.tolist()
        return rows

    everything = list(range(SAMPLES))
    chosen = [300, 4, 4, 17]
    assert rows_read(Subset(ds, chosen), batch_size=3) == chosen
    assert rows_read(Subset(Subset(ds, chosen), [3, 0]), batch_size=2) == [17, 300]
    parts = random_split(ds, [0.7, 0.3], torch.Generator().manual_seed(1))
    assert sorted(rows_read(parts[0], batch_size=40) + rows_read(parts[1], batch_size=40)) == everything
    both = ConcatDataset([Subset(ds, [1, 2, 3]), ds])
    assert rows_read(both, batch_size=100) == [1, 2, 3, *everything]
    ranks = [DistributedSampler(ds, num_replicas=2, rank=rank, seed=3) for rank in range(2)]
    shares = [rows_read(ds, batch_size=32, sampler=sampler) for sampler in ranks]
    assert len(shares[0]) == len(shares[1]) == 151
    assert sorted({*shares[0], *shares[1]}) == everything
    batches = BatchSampler(RandomSampler(ds, generator=torch.Generator().manual_seed(2)), 50, drop_last=False)
    assert sorted(rows_read(ds, batch_sampler=batches)) == everything
    assert rows_read(ds, batch_size=64, pin_memory=False) == everything


def test_single_samples_without_batches(lz4: Path, values: dict[str, np.ndarray]) -> None:
    for row, sample in enumerate(DataLoader(StoreDataset(lz4, ("x",)), batch_size=None)):
        assert_rows(sample["x"], values["x"], row)


# ---- transforms and index


@dataclass(frozen=True)
class Scaled:
    by: int

    def __call__(self, sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert type(sample) is dict
        return {"x": sample["x"] * self.by, "shape": torch.tensor(sample["x"].shape)}


def test_transform_sees_each_sample(lz4: Path, values: dict[str, np.ndarray]) -> None:
    ds = StoreDataset(lz4, ("x", "f0"), transform=Scaled(2))
    assert_rows(ds[5]["x"], values["x"] * 2, 5)
    [batch] = DataLoader(Subset(ds, [5, 1]), batch_size=2)
    assert_rows(batch["x"], values["x"] * 2, [5, 1])
    assert batch["shape"].tolist() == [[7, 3], [7, 3]]


def test_transform_of_tuples_may_return_anything(lz4: Path, values: dict[str, np.ndarray]) -> None:
    ds = StoreDataset(
        lz4, ("x", "f0"), as_tuple=True, transform=lambda sample: (type(sample).__name__, sample[1])
    )
    assert ds[5][0] == "tuple"
    [batch] = DataLoader(Subset(ds, [5, 1]), batch_size=2)
    assert list(batch[0]) == ["tuple", "tuple"]
    assert_rows(batch[1], values["f0"], [5, 1])


def test_batch_transform_comes_before_transform(lz4: Path, values: dict[str, np.ndarray]) -> None:
    seen: list[tuple[int, ...]] = []

    def doubled(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(tuple(batch["x"].shape))
        return {"x": batch["x"] * 2}

    ds = StoreDataset(lz4, ("x", "f0"), batch_transform=doubled, transform=Scaled(3))
    [batch] = DataLoader(Subset(ds, [5, 1]), batch_size=2)
    assert_rows(batch["x"], values["x"] * 2 * 3, [5, 1])
    assert_rows(ds[-1]["x"], values["x"] * 2 * 3, -1)
    assert seen == [(2, 7, 3), (1, 7, 3)]


@pytest.mark.parametrize("workers", WORKERS)
def test_batch_transform_of_tuples(lz4: Path, values: dict[str, np.ndarray], workers: int) -> None:
    def swapped(batch: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        x, y, index = batch
        return [y.add_(1), x[:, ::2], index]

    ds = StoreDataset(lz4, ("x", "y"), as_tuple=True, with_index=True, batch_transform=swapped)
    context = "fork" if workers else None
    loader = DataLoader(ds, batch_size=50, num_workers=workers, multiprocessing_context=context, shuffle=True)
    for y, x, index in loader:
        assert_rows(y, values["y"] + 1, index.numpy())
        assert_rows(x, values["x"][:, ::2], index.numpy())


CONSTANT = torch.full((2, 3), 4.0)


@pytest.mark.parametrize(
    "result",
    [
        lambda x: {"x": x, "again": x},
        lambda x: {"x": x, "viewed": x.flatten(1)},
        lambda x: {"x": x[:, 0]},
        lambda x: {"x": x.transpose(1, 2)},
        lambda x: {"x": x[:1].expand(2, 7, 3)},
        lambda x: {"x": CONSTANT},
        lambda x: {"x": CONSTANT.view(2, 3, 1)},
        lambda x: {"x": CONSTANT.detach()},
        lambda x: {"x": CONSTANT[:1].expand(2, 3)},
        lambda x: (x, CONSTANT),
        lambda x: [CONSTANT],
    ],
)
def test_results_of_a_batch_transform_are_private(lz4: Path, result: Callable[[torch.Tensor], Any]) -> None:
    ds = StoreDataset(lz4, ("x",), batch_transform=lambda batch: result(batch["x"]))
    samples = ds.__getitems__([5, 1])
    wanted = default_collate(plain(samples))
    batch = default_collate(samples)
    assert_same(batch, wanted)
    del samples
    for key in list(batch) if isinstance(batch, dict) else range(len(batch)):
        batch[key].fill_(-1)
        wanted[key].fill_(-1)
        assert_same(batch, wanted)
    assert torch.equal(CONSTANT, torch.full((2, 3), 4.0))


def test_a_batch_transform_may_change_its_dict(lz4: Path) -> None:
    def replaced(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        batch["x"] = CONSTANT
        return batch

    default_collate(StoreDataset(lz4, ("x", "y"), batch_transform=replaced).__getitems__([5, 1]))["x"].zero_()
    assert torch.equal(CONSTANT, torch.full((2, 3), 4.0))


def test_a_single_sample_after_a_batch_transform_is_private(lz4: Path) -> None:
    ds = StoreDataset(lz4, ("x",), batch_transform=lambda batch: {"x": CONSTANT[:1], "same": batch["x"]})
    ds[0]["x"].fill_(-1)
    assert torch.equal(CONSTANT, torch.full((2, 3), 4.0))


def test_results_of_a_batch_transform_are_taken_without_a_copy(lz4: Path) -> None:
    places: dict[str, int] = {}

    def scaled(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        result = {"x": batch["x"].mul_(2), "y": batch["y"].unsqueeze(1), "z": batch["x"][:, 1:] + 1}
        places.update({name: tensor.data_ptr() for name, tensor in result.items()})
        return result

    batch = default_collate(StoreDataset(lz4, ("x", "y"), batch_transform=scaled).__getitems__([5, 1]))
    assert {name: tensor.data_ptr() for name, tensor in batch.items()} == places


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (lambda b: b["x"], "must return a dict or tuple of tensors, returned Tensor"),
        (lambda b: None, "returned NoneType"),
        (lambda b: {}, "no tensors"),
        (lambda b: {"x": b["x"].mean()}, r"'x' has shape \(\)"),
        (lambda b: {"x": b["x"].mean(0)}, r"'x' has shape \(7, 3\), but axis 0 must keep the 4 samples"),
        (lambda b: {"x": b["x"][1:]}, r"shape \(3, 7, 3\)"),
        (lambda b: {"x": b["x"].numpy()}, "'x' is ndarray, not a tensor"),
        (lambda b: (b["x"], 3), "1 is int"),
    ],
)
def test_a_batch_transform_that_loses_the_batch(lz4: Path, result: Callable[[Any], Any], text: str) -> None:
    ds = StoreDataset(lz4, ("x",), batch_transform=result)
    with pytest.raises(RecipeError, match=f"^batch_transform: .*{text}"):
        ds.__getitems__([1, 2, 3, 4])


def test_index_is_that_of_the_store(lz4: Path) -> None:
    ds = StoreDataset(lz4, ("x",), with_index=True)
    assert list(ds[0]) == ["x", "index"]
    assert ds[-1]["index"].dtype == torch.int64
    assert ds[-1]["index"].shape == ()
    assert ds[-1]["index"] == SAMPLES - 1
    [batch] = DataLoader(Subset(ds, [9, 9, 2]), batch_size=3)
    assert bits(batch["index"]) == bits(torch.tensor([9, 9, 2]))
    x, index = StoreDataset(lz4, ("x",), as_tuple=True, with_index=True)[-2]
    assert x.shape == (7, 3)
    assert index == SAMPLES - 2


# ---- construction


def test_a_store_and_its_path_give_the_same(lz4: Path) -> None:
    with open_store(lz4) as store:
        assert_same(StoreDataset(store)[7], StoreDataset(str(lz4))[7])


def test_a_store_that_shows_fewer_samples_keeps_to_them(lz4: Path) -> None:
    ds = StoreDataset(open_store(lz4).first(10), ("f0",))
    assert len(ds) == 10
    assert len(list(ds)) == 10
    with pytest.raises(IndexError):
        ds[10]
    assert len(pickle.loads(pickle.dumps(ds))) == 10


def test_a_pickled_dataset_reads_the_same(path: Path) -> None:
    ds = StoreDataset(path, ("y", "x"), as_tuple=True, with_index=True, transform=tuple)
    ds[0]
    back = pickle.loads(pickle.dumps(ds))
    assert len(pickle.dumps(ds)) < 10_000
    assert_same(back[12], ds[12])
    assert repr(back) == repr(ds)


def test_expect(lz4: Path) -> None:
    assert len(StoreDataset(lz4, expect=Numbers())) == SAMPLES
    assert len(StoreDataset(lz4, expect=Numbers(samples=20))) == 20
    store = open_store(lz4)
    assert len(StoreDataset(store, expect=Numbers(samples=20))) == 20
    assert len(StoreDataset(store.first(5), expect=Numbers(samples=20))) == 5
    for given in (lz4, store):
        with pytest.raises(StaleStoreError, match=r"gain: 1\.0 -> 2\.0") as caught:
            StoreDataset(given, expect=Numbers(gain=2.0))
        assert len(caught.value.changes) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fields": ("x", "z")}, r"no field 'z'; there are .*wave"),
        ({"fields": "z"}, r"no field 'z'; there are .*wave"),
        ({"fields": ("x", "x")}, "name one twice"),
        ({"fields": ()}, r"no fields chosen; there are .*wave"),
    ],
)
def test_fields_that_cannot_be_given(lz4: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text) as caught:
        StoreDataset(lz4, **options)
    assert str(lz4) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_field_by_its_name(lz4: Path, values: dict[str, np.ndarray]) -> None:
    [wave] = StoreDataset(lz4, "wave", as_tuple=True)[8]
    assert_rows(wave, values["wave"], 8)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="an open store or a path, not int"):
        StoreDataset(3)  # type: ignore[arg-type]
    with pytest.raises(StoreNotFoundError):
        StoreDataset(tmp_path / "none.zarr")


@pytest.mark.parametrize("option", ["transform", "batch_transform"])
def test_transforms_that_are_no_functions_are_refused(lz4: Store, option: str) -> None:
    with pytest.raises(RecipeError, match=f"^{option}=3 is no function"):
        StoreDataset(lz4, "wave", **{option: 3})  # type: ignore[arg-type]


def changed_field(monkeypatch: pytest.MonkeyPatch, store: Store, **changes: Any) -> None:
    x = store.fields["x"]
    fields = {"index": replace(x, layout=replace(x.layout, **changes))}
    monkeypatch.setattr(type(store), "fields", property(lambda self: fields))


def test_a_field_that_torch_has_no_dtype_for(lz4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(lz4)
    changed_field(monkeypatch, store, dtype=np.dtype(np.longdouble).str)
    with pytest.raises(RecipeError, match="field 'index': torch has no dtype for"):
        StoreDataset(store)


def test_a_field_named_index_hides_no_index(lz4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(lz4)
    changed_field(monkeypatch, store)
    with pytest.raises(RecipeError, match="would hide the field 'index'"):
        StoreDataset(store, with_index=True)
    StoreDataset(store, with_index=True, as_tuple=True)


def test_repr_says_what_it_gives(lz4: Path) -> None:
    text = repr(StoreDataset(lz4, ("x", "big", "f0")))
    assert text == (
        f"<parbake.StoreDataset {str(lz4)!r}: 301 samples; x [7, 3] float32, big [23] float32, f0 [] float32>"
    )
