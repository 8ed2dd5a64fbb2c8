"""What loaders share: the order of an epoch in batches, where each epoch begins, and how a run resumes."""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.errors import RecipeError
from parbake.loaders.block_shuffle import BlockShuffle, Indices
from parbake.loaders.order import BlockOrder, checked_integer
from parbake.store.index import normalised_index

if TYPE_CHECKING:  # which imports this module
    from parbake.loaders.dataset import StoreDataset


Numbers: TypeAlias = NDArray[np.int64]  # of the samples of a batch, non-negative

FORKED = "this iteration began before the process was forked; begin another one here"
_SHOWN = 8  # numbers in a note


def draw_seed(seed: int, epoch: int) -> int:
    """What decides everything random in an epoch but its order: 63 bits, a pure function of both."""
    digest = hashlib.sha256(f"parbake draw 1|{seed}|{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class _InOrder(BlockOrder):
    """The samples as they are stored, in every epoch."""

    def at(self, positions: NDArray[np.integer], epoch: int) -> NDArray[np.int64]:
        return positions.astype(np.int64)


_UNSHUFFLED = {"block": None, "span": None}  # in the state of a loader that gives samples in order


@dataclass(eq=False)
class Epoch:
    """One iteration of a loader: the numbers of the samples of each batch, int64, in order."""

    draw: int  # seed of what is random in its batches
    batches: Iterator[Numbers]
    samples: int | None  # that it gives, if that can be known
    missed: int = 0  # samples of failed batches, which count once a later one is delivered


class Epochs:
    """The epochs of one loader, one after the other: see ``EpochLoader``. Raises RecipeError."""

    def __init__(
        self,
        dataset: StoreDataset,
        batch_size: int,
        *,
        shuffle: bool,
        sampler: Iterable[int] | None,
        drop_last: bool,
        seed: int,
    ) -> None:
        self.batch_size = checked_integer("batch_size", batch_size, 1, None)
        self._seed = checked_integer("seed", seed, None, None)
        self._n, self._drop_last = len(dataset), bool(drop_last)
        self._sampler: Iterable[int]
        if sampler is None:
            self._sampler = BlockShuffle(dataset, 1, batch_size=self.batch_size, seed=self._seed)
            if not shuffle:
                self._sampler.order = _InOrder(self._n, 1, 1, self._seed)
        elif shuffle:
            raise RecipeError("shuffle=True and a sampler both say the order; give one of them")
        else:
            self._sampler = sampler
        self._blocks = self._sampler if isinstance(self._sampler, BlockShuffle) else None
        if sampler is not None and self._blocks is not None:
            self._adopt(self._blocks)
            dataset.store.reserve(self._blocks.order.block * self._blocks.order.span, dataset.fields)
        self._next_epoch = 0  # of a sampler that keeps no count itself
        self._begun: int | None = None  # the epoch begun last, unless the place was set since
        self._now: Epoch | None = None  # whose deliveries count

    def _adopt(self, blocks: BlockShuffle) -> None:
        share = blocks._share
        if share.ranks > 1 and share.batch_size != self.batch_size:
            raise RecipeError(
                f"batch_size={self.batch_size} where the sampler shares out batches of {share.batch_size} to "
                f"{share.ranks} ranks; give both the same"
            )
        if self._seed not in (0, blocks.order.seed):
            raise RecipeError(
                f"seed={self._seed} where the sampler has seed {blocks.order.seed}; leave it out"
            )
        self._seed = blocks.order.seed

    @property
    def in_order(self) -> bool:
        return self._blocks is not None and isinstance(self._blocks.order, _InOrder)

    def begin(self) -> Epoch:
        """The next epoch, or the rest of the one that was resumed."""
        if self._blocks is None:
            number, samples = self._next_epoch, None
            self._next_epoch += 1
        else:
            if self._blocks.epoch == self._begun:  # left early
                self._go_to(self._begun + 1)
            number = self._begun = self._blocks.epoch
            samples = len(self._blocks)
        # the sampler is asked here, not at the first batch: others may begin before that
        batches = _batched(iter(self._sampler), self.batch_size, self._drop_last, self._n)
        self._now = Epoch(draw_seed(self._seed, number), batches, samples)
        return self._now

    def deliver(self, epoch: Epoch, numbers: Numbers, get: Callable[[], Any]) -> Any:
        """The batch that ``get`` gives, counted as delivered; its errors get a note of the samples."""
        try:
            batch = get()
        except BaseException as error:
            epoch.missed += len(numbers)
            error.add_note(_while_reading(numbers))
            if isinstance(error, StopIteration):  # which would end the consumer's loop without a word
                raise RuntimeError("StopIteration was raised while reading a batch") from error
            raise
        if epoch is self._now and self._blocks is not None and epoch.samples is not None:
            count, epoch.missed = len(numbers) + epoch.missed, 0
            epoch.samples -= count
            if self._drop_last and epoch.samples < self.batch_size:
                self._go_to(self._blocks.epoch + 1)
            else:
                self._blocks.delivered(count)
        return batch

    def set_epoch(self, epoch: int) -> None:
        epoch = checked_integer("epoch", epoch, 0, None)
        if self._blocks is None:
            self._next_epoch = epoch
            if hasattr(self._sampler, "set_epoch"):
                self._sampler.set_epoch(epoch)
        elif self._begun is not None or epoch != self._blocks.epoch:  # else it may have been resumed there
            self._go_to(epoch)

    def _go_to(self, epoch: int) -> None:
        """The next iteration is the whole of ``epoch``; what is under way no longer counts."""
        blocks = self._resumable()
        blocks.load_state_dict(blocks.state_dict() | {"epoch": epoch, "delivered": 0})
        self._begun = self._now = None

    def state_dict(self) -> dict[str, Any]:
        state = self._resumable().state_dict()
        return state | _UNSHUFFLED if self.in_order else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        blocks = self._resumable()
        if self.in_order and isinstance(state, Mapping):
            if not _UNSHUFFLED.items() <= state.items():
                raise RecipeError(
                    "loader state: of shuffled samples where this loader gives them in order; resume with "
                    "what the run began with, or begin a new one without its state"
                )
            state = {**state, "block": 1, "span": 1}
        blocks.load_state_dict(state)
        self._begun = self._now = None

    def _resumable(self) -> BlockShuffle:
        if self._blocks is None:
            raise RecipeError(
                f"the order of {type(self._sampler).__name__} cannot be saved; give shuffle=True, a "
                "BlockShuffle or no sampler"
            )
        return self._blocks

    @property
    def batch_samples(self) -> int:
        """Samples of the largest batch, as far as that can be known: a batch_size may be beyond them."""
        if self._blocks is not None:
            return min(self.batch_size, self._n)
        return (
            min(self.batch_size, len(self._sampler)) if isinstance(self._sampler, Sized) else self.batch_size
        )

    def __len__(self) -> int:
        samples = len(self._sampler)  # type: ignore[arg-type]
        return samples // self.batch_size if self._drop_last else -(-samples // self.batch_size)


def _batched(indices: Iterator[int], batch_size: int, drop_last: bool, n: int) -> Iterator[Numbers]:
    """``indices`` in batches, checked against ``n`` samples. Raises IndexError, TypeError."""
    batches = indices.batches(batch_size) if isinstance(indices, Indices) else _listed(indices, batch_size)
    for batch in batches:
        if len(batch) == batch_size or not drop_last:
            yield normalised_index(batch, n)


def _listed(indices: Iterator[int], batch_size: int) -> Iterator[list[int]]:
    while batch := [operator.index(i) for i in itertools.islice(indices, batch_size)]:
        yield batch


def _while_reading(numbers: Numbers) -> str:
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"while reading samples {', '.join(map(str, numbers[:_SHOWN].tolist()))}{more} of a batch"


class EpochLoader:
    """Batches of a dataset, epoch after epoch.

    Each iteration is the next epoch, the first one 0, also when the one before was left early;
    ``set_epoch`` says another. ``state_dict`` counts the batches that the iteration begun last has
    delivered; after ``load_state_dict`` the next iteration goes on from there, also when ``set_epoch`` names
    that very epoch. Raises RecipeError for the state of another dataset, order or seed, and for samplers
    that are no BlockShuffle.
    """

    def __init__(self, dataset: StoreDataset, epochs: Epochs) -> None:
        self.dataset = dataset
        self._epochs = epochs

    def __repr__(self) -> str:
        return f"<parbake.{type(self).__name__}: batches of {self.batch_size} from {self.dataset}>"

    @property
    def batch_size(self) -> int:
        """Samples of a batch; the last of an epoch may have fewer."""
        return self._epochs.batch_size

    def __len__(self) -> int:
        """Batches of the epoch under way or, between epochs, of the next."""
        return len(self._epochs)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is the whole of this epoch, or the rest of it if it was resumed there."""
        self._epochs.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, JSON: the order, the epoch and the samples of it that were delivered."""
        return self._epochs.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the run that gave ``state`` was."""
        self._epochs.load_state_dict(state)
