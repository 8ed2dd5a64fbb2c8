"""Slots: lent while anything lies over them, one place for each tensor, nothing left behind."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bakery import ended, start_child
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import assert_same, held
from torch import Tensor

from parbake.loaders import slots
from parbake.loaders.batches import packed, unpacked
from parbake.loaders.slots import ALIGNMENT, Arena, Memory, Place, Segment, Slots

DTYPES = [torch.uint8, torch.bool, torch.int16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def arena_of(nbytes: int) -> Arena:
    return Arena(np.zeros(nbytes, np.uint8))


def filled(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (torch.rand(shape) * 100).to(dtype)


# ---- places


@settings(deadline=None)
@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=6))
def test_tensors_lie_side_by_side_each_in_a_storage_of_its_own(
    wanted: list[tuple[tuple[int, ...], torch.dtype]],
) -> None:
    arena = arena_of(6 * 5**3 * 8)
    places = [arena.place(shape, dtype) for shape, dtype in wanted]
    stretches = []
    for place, (shape, dtype) in zip(places, wanted, strict=True):
        assert place is not None
        tensor = arena.tensor(place)
        assert (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
        assert tensor.untyped_storage().nbytes() == tensor.nbytes == place.nbytes
        assert not tensor._is_view()
        assert place.offset % ALIGNMENT == 0
        stretches.append((place.offset, place.offset + place.nbytes))
    for (_, stop), (start, _) in itertools.pairwise(stretches):
        assert stop <= start


@settings(deadline=None)
@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=6), st.integers(0, 3000))
def test_what_is_packed_is_what_is_unpacked(
    wanted: list[tuple[tuple[int, ...], torch.dtype]], nbytes: int
) -> None:
    tensors = [filled(shape, dtype) for shape, dtype in wanted]
    value = {"list": [*tensors, "text", 1.5], "tuple": (tensors[:2], {}), "none": None}
    memory = np.zeros(nbytes, np.uint8)
    assert_same(unpacked(packed(value, Arena(memory)), Arena(memory)), value)


def test_a_tensor_in_the_slot_is_packed_where_it_is() -> None:
    arena = arena_of(1000)
    one, other = arena.empty((3,), torch.int16), arena.empty((4, 5), torch.float32)
    assert packed([one, other], arena) == [
        Place(0, (3,), torch.int16),
        Place(ALIGNMENT, (4, 5), torch.float32),
    ]


def test_a_transposed_tensor_in_the_slot_is_packed_in_order() -> None:
    memory = np.zeros(1000, np.uint8)
    arena = Arena(memory)
    tensor = arena.empty((4, 5), torch.float32).copy_(filled((4, 5), torch.float32))
    assert_same(unpacked(packed(tensor.T, arena), Arena(memory)), tensor.T.contiguous())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, requires_grad=True),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.eye(2).to_sparse(),
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2, device="meta"),
    ],
    ids=["grad", "conj", "sparse", "subclass", "device"],
)
def test_what_is_more_than_its_bytes_is_left_as_it_is(tensor: Tensor) -> None:
    assert packed([tensor], arena_of(1000))[0] is tensor


def test_what_does_not_fit_takes_fresh_memory() -> None:
    arena = arena_of(100)
    assert arena.place((101,), torch.uint8) is None
    big = torch.ones(101, dtype=torch.uint8)
    assert packed(big, arena) is big
    assert arena.found(arena.empty((101,), torch.uint8)) is None
    assert arena.found(arena.empty((100,), torch.uint8)) is not None


# ---- leases

HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda tensor: tensor,
    "row": lambda tensor: tensor[1],
    "rows": lambda tensor: tensor.unbind(0)[0],
    "transposed": lambda tensor: tensor.T,
    "detached": lambda tensor: tensor.detach(),
    "as bytes": lambda tensor: tensor.view(torch.uint8),
    "array": lambda tensor: tensor.numpy(),
    "array's slice": lambda tensor: tensor[2:].numpy()[1:, ::2],
    "memoryview": lambda tensor: memoryview(tensor.numpy()),
    "storage": lambda tensor: tensor.untyped_storage(),
    "graph": lambda tensor: (tensor * torch.ones((), requires_grad=True)).sum(),
    "bound method": lambda tensor: tensor[3].clone,
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("memory", ["private", "shared"])
def test_a_slot_returns_when_the_last_that_lies_over_it_has_died(
    memory: Memory, hold: Callable[[Tensor], Any]
) -> None:
    slots = Slots(1, 4096, memory)
    arena = slots.leased()
    assert arena is not None
    first, second = (arena.empty((5, 4), torch.float32) for _ in range(2))
    keeper = hold(first)
    del arena, first
    assert slots.take() is None
    del second
    assert slots.take() is None
    del keeper
    assert slots.take() == 0


def test_a_clone_holds_no_slot() -> None:
    slots = Slots(1, 4096, "private")
    clone = slots.lease(0).empty((5,), torch.float32).clone()
    taken = [slots.take(), slots.take()]
    assert clone.shape == (5,)
    assert taken == [0, 0]  # as it was never taken: of the lease, and of the beginning


def test_memory_outlives_its_slots() -> None:
    before = held()
    slots = Slots(2, 4096, "shared")
    arena = slots.leased()
    assert arena is not None
    tensor = arena.empty((1000,), torch.float32).fill_(7)
    del slots, arena
    assert tensor.eq(7).all()
    assert held()[1] == before[1] + 1
    del tensor
    assert held() == before


def test_slots_do_not_overlap() -> None:
    slots = Slots(3, 5000, "private")
    tensors = []
    for value in range(3):
        arena = slots.leased()
        assert arena is not None
        tensors.append(arena.empty((5000,), torch.uint8).fill_(value))
    assert [tensor.unique().tolist() for tensor in tensors] == [[0], [1], [2]]
    assert slots.leased() is None


def test_a_dry_ring_is_told_once() -> None:
    slots = Slots(3, 1, "private")
    with pytest.warns(UserWarning, match="all 3 slots .* clones"):
        slots.tell_dry()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slots.tell_dry()


# ---- memory


@pytest.mark.parametrize(("memory", "seen"), [("shared", 9), ("private", 1)])
def test_a_fork_writes_to_shared_memory_only(memory: Memory, seen: int) -> None:
    view = Segment(4096, memory).view(0, 4096)
    view[:] = 1

    def write() -> None:
        view[7] = 9

    assert ended(start_child(write)) == 0
    assert view[7] == seen


def test_slots_are_given_to_processes_that_are_being_started_only() -> None:
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(Slots(1, 1, "shared").memory)


def test_without_nameless_memory_a_file_without_a_name_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    before = held()
    segment = Segment(4096, "shared")
    view = segment.view(8, 16)
    view[:] = 3
    assert segment.view(0, 32).tolist() == [0] * 8 + [3] * 16 + [0] * 8
    del segment, view
    assert held() == before


FORMS = [((4, 3), torch.float32), ((4,), torch.int64)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_REUSED_MIN", 1)


def batch_of(reused: slots.Reused) -> list[Tensor]:
    empty = reused.allocator(FORMS)
    return [empty(*form) for form in FORMS]


def test_memory_is_reused_when_nobody_holds_it(small: None) -> None:
    reused = slots.Reused()
    places = {batch_of(reused)[0].data_ptr() for _ in range(20)}
    assert len(places) == 1


def test_what_is_held_is_never_given_again(small: None) -> None:
    reused = slots.Reused()
    held = [batch_of(reused) for _ in range(slots.HELD + 3)]
    for number, tensors in enumerate(held):
        for tensor in tensors:
            tensor.fill_(number)
    assert all((tensor == number).all() for number, tensors in enumerate(held) for tensor in tensors)


@pytest.mark.parametrize("forms", [[((4,), torch.int8)], [((1 << 40,), torch.float64)]])
def test_tiny_and_huge_batches_take_no_slots(forms: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    reused = slots.Reused()
    assert reused.allocator(forms) is slots.private_empty
    assert reused._slots is None


def test_copies_have_slots_of_their_own(small: None) -> None:
    reused = slots.Reused()
    held = batch_of(reused)
    assert pickle.loads(pickle.dumps(reused))._slots is None
    assert batch_of(copy.copy(reused))[0].data_ptr() != held[0].data_ptr()


def test_a_fork_has_slots_of_its_own(small: None) -> None:
    reused = slots.Reused()
    batch_of(reused)
    made = reused._slots
    child = os.fork()
    if not child:
        batch_of(reused)
        os._exit(0 if reused._slots is not made else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
