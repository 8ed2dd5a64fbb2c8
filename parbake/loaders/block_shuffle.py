"""A sampler for torch's DataLoader that shuffles blocks, then samples within a span of blocks."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import RecipeError
from parbake.loaders.order import BlockOrder, Share, Uneven, checked_integer, default_span
from parbake.store.samples import Samples

if TYPE_CHECKING:  # this module itself needs no torch
    from parbake.loaders.dataset import StoreDataset

_PIECE = 4096  # indices computed at once, about
_NOTHING = object()


class BlockShuffle:
    """Sample numbers in a block-shuffled order, for ``DataLoader(dataset, batch_size, sampler=...)``.

    ``samples``: a StoreDataset, or a number of samples. ``block``: adjoining samples that stay near each
    other; default the largest chunk of the dataset's fields, scalars left aside, since a random read of
    those decodes nothing; 1 is a full permutation. ``span``: blocks that are read from at a time; default
    the least at which the mean index of a batch varies as in a full permutation, within 2.5 %: about 40
    times ``batch_size * ranks``. ``batch_size``: the loader's. ``seed``: determines the order, with the
    epoch and the number of samples. ``rank``, ``ranks``, ``uneven``: which ``Share`` to take; several ranks
    must say "pad" or "drop".

    ``set_epoch`` before each epoch gives each its own order. A loader's workers run ahead of the training,
    so a sampler cannot see what arrived: who wants to resume tells it with ``delivered``. The state of any
    rank then resumes a run on any number of ranks and workers, with any batch size. torchdata's
    StatefulDataLoader counts for itself and needs no telling.

    Raises RecipeError.
    """

    def __init__(
        self,
        samples: StoreDataset | int,
        block: int | None = None,
        span: int | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        uneven: Uneven | None = None,
    ) -> None:
        n, chunk, self.digest = _described(samples)
        if block is None and chunk is None:
            raise RecipeError(f"BlockShuffle({n}): a number of samples has no chunks; give block")
        self._fixed = {name: given for name, given in (("block", block), ("span", span)) if given is not None}
        self._share = Share(n, 0, batch_size, rank, ranks, uneven)
        block = chunk or 1 if block is None else block
        span = default_span(n, block, batch_size * ranks) if span is None else span
        self.order = BlockOrder(n, block, span, seed)
        self.epoch = 0
        self._delivered = 0  # of this rank's share

    @property
    def variance_ratio(self) -> float:
        """The variance of the mean index of the batches of all ranks, over a full permutation's."""
        return self.order.variance_ratio(self._share.batch_size * self._share.ranks)

    def __len__(self) -> int:
        """Samples that the next iteration gives; during one, that it gives in all."""
        return len(self._share)

    def __iter__(self) -> Indices:
        """The samples of this rank's share that are not delivered yet."""
        self._begin(self.epoch, self._share.delivered(self._delivered))
        indices = Indices(self.order, self.epoch, self._share)
        if not len(self._share):  # resumed at the very end: nothing will be delivered, so go on from here
            self._begin(self.epoch + 1, 0)
        return indices

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; to where it is, if it is this one."""
        if checked_integer("epoch", epoch, 0, None) != self.epoch:
            self._begin(operator.index(epoch), 0)

    def delivered(self, count: int) -> None:
        """Note that ``count`` samples more have arrived on this rank, and as many on each other.

        After the last of an epoch, the sampler is at the beginning of the next. Raises RecipeError for more
        than there are and, where there are several ranks, for what is no whole batch.
        """
        total = self._delivered + checked_integer("samples delivered", count, 0, None)
        if self._share.delivered(total) == self._share.n:
            self._begin(self.epoch + 1, 0)
        else:
            self._delivered = total

    def state_dict(self) -> dict[str, Any]:
        """What determines the order, and how many samples of the epoch all ranks together have delivered."""
        done = self._share.delivered(self._delivered)
        return asdict(self.order) | {"epoch": self.epoch, "delivered": done, "digest": self.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the run that gave ``state`` was; in its order, where no other was asked for.

        Raises RecipeError, naming both, when seed, samples, digest, or a block or span that was given differ.
        """
        if not isinstance(state, Mapping):
            raise RecipeError(f"sampler state: a dict is needed, not {type(state).__name__}")
        wanted = {"seed": self.order.seed, "n": self.order.n, "digest": self.digest} | self._fixed
        for name in ("seed", "n", "digest", "block", "span", "epoch", "delivered"):
            found = state.get(name, _NOTHING)
            if found is _NOTHING:
                raise RecipeError(f"sampler state: {name!r} is missing; is this the state of a BlockShuffle?")
            if name in wanted and found != wanted[name]:
                raise RecipeError(
                    f"sampler state: {name} {found!r} where this sampler has {wanted[name]!r}; "
                    "resume with what the run began with, or begin a new one without its state"
                )
        order = replace(self.order, block=state["block"], span=state["span"])
        start = checked_integer("samples delivered", state["delivered"], 0, order.n)
        self._begin(checked_integer("epoch", state["epoch"], 0, None), start)
        self.order = order

    def _begin(self, epoch: int, start: int) -> None:
        """Iterations start from here."""
        self.epoch, self._delivered = epoch, 0
        self._share = replace(self._share, start=start)


class Indices(Iterator[int]):
    """One iteration; its state is what torchdata saves and loads beside the sampler's."""

    def __init__(self, order: BlockOrder, epoch: int, share: Share) -> None:
        self._order, self._epoch, self._share = order, epoch, share
        self._yielded = 0
        self._left = self._from(0)

    def __next__(self) -> int:
        sample = next(self._left)
        self._yielded += 1
        return sample

    def _from(self, first: int) -> Iterator[int]:
        for piece in self._pieces(first, _PIECE):
            yield from piece.tolist()

    def batches(self, batch_size: int) -> Iterator[NDArray[np.int64]]:
        """All of them in arrays of ``batch_size``, the last perhaps shorter, without a step for each."""
        for piece in self._pieces(0, max(_PIECE // batch_size, 1) * batch_size):
            yield from (piece[start : start + batch_size] for start in range(0, len(piece), batch_size))

    def _pieces(self, first: int, samples: int) -> Iterator[NDArray[np.int64]]:
        for start in range(first, len(self._share), samples):
            stop = min(start + samples, len(self._share))
            yield self._order.at(self._share.positions(start, stop), self._epoch)

    def state_dict(self) -> dict[str, Any]:
        share = {name: value for name, value in asdict(self._share).items() if name != "rank"}
        return {"epoch": self._epoch, "yielded": self._yielded, "share": share}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises RecipeError for the state of an iteration over other shares."""
        share = replace(self._share, **state["share"])
        if replace(share, start=self._share.start) != self._share:
            raise RecipeError(
                f"loader state: of {share.ranks} ranks with batches of {share.batch_size} where there are "
                f"{self._share.ranks} with {self._share.batch_size}; only the sampler's own state resumes so"
            )
        self._share, self._epoch, self._yielded = share, state["epoch"], state["yielded"]
        self._left = self._from(self._yielded)


def _described(samples: StoreDataset | int) -> tuple[int, int | None, str | None]:
    """The number of samples, the largest chunk in samples, the digest of the store."""
    if isinstance(store := getattr(samples, "store", None), Samples):
        layouts = [store.fields[name].layout for name in samples.fields]  # type: ignore[union-attr]
        chunk = max((layout.chunk_samples for layout in layouts if not layout.is_scalar), default=1)
        return len(samples), chunk, store.digest  # type: ignore[arg-type]
    try:
        return operator.index(samples), None, None  # type: ignore[arg-type]
    except TypeError:
        raise RecipeError(
            f"BlockShuffle takes a StoreDataset or a number of samples, not {type(samples).__name__}; "
            "for a part of a dataset give its length, and block"
        ) from None
