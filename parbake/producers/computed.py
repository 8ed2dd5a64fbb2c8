"""Samples computed as they are asked for: a producer behind the interface of a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.producers.batches import produce_batch, producing
from parbake.producers.jobs import default_batch_size, with_drawn_seed
from parbake.store.document import StoredField
from parbake.store.index import Window, adjoining
from parbake.store.keys import JSON, Freshness, Keys, Producer, compare, producer_keys
from parbake.store.layout import Coord, merged_coords, plan_layout
from parbake.store.samples import Samples


class ComputedStore(Samples):
    """The samples of a producer, computed at each read and kept nowhere: ``cached(..., use_cache=False)``.

    They equal those of a bake but for the last bits, which may depend on how many are computed at once.
    Adjoining samples of one read are computed together, at most a batch of the producer's at a time.
    """

    def __init__(self, producer: Producer, *, rehash: bool = False) -> None:
        """Raises what ``bake`` raises for a producer."""
        self.invalidation_keys, schema = producer_keys(producer, rehash=rehash)
        self.coords: Mapping[str, Coord] = merged_coords(schema)
        self.producer = with_drawn_seed(producer)
        self._samples = len(producer)
        layout = plan_layout(schema, "raw")
        self._fields = {name: StoredField.of(name, f, layout.fields[name]) for name, f in schema.items()}

    @property
    def path(self) -> str:
        """What takes the place of a path in messages: ``computed NAME``."""
        return f"computed {self.producer.name}"

    @property
    def samples(self) -> int:
        return self._samples

    @property
    def fields(self) -> Mapping[str, StoredField]:
        return self._fields

    @property
    def is_stored(self) -> bool:
        """False: every read computes."""
        return False

    @property
    def digest(self) -> str:
        """Digest of the shared invalidation keys."""
        return self.invalidation_keys.digest

    @cached_property
    def statistics(self) -> Mapping[str, JSON]:
        """As of a store; computes every sample once."""
        return {name: self.computed_statistics(field) for name, field in self.fields.items()}

    def _fill(
        self,
        arrays: Mapping[str, NDArray[Any]],
        numbers: NDArray[np.int64],
        windows: Mapping[str, Window],
        threads: int,
    ) -> None:
        """Raises ProducerError."""
        for start, stop in _runs(np.unique(numbers), default_batch_size(self.producer)):
            with producing:
                batch = produce_batch(self.producer, self._fields, tuple(arrays), start, stop)
                values = batch.checked(self._fields)
            rows = np.flatnonzero((numbers >= start) & (numbers < stop))
            for name, array in arrays.items():
                samples = values[name][numbers[rows] - start]
                array[rows] = windows[name].part(rows).of(samples) if name in windows else samples

    def first(self, samples: int) -> ComputedStore:
        """This one showing its first ``samples`` only."""
        if not 0 < samples <= len(self.producer):
            raise IndexError(f"{self.path}: {samples} of {len(self.producer)} samples")
        shown = object.__new__(ComputedStore)
        shown.__dict__.update(self.__dict__, _samples=samples)
        shown.__dict__.pop("statistics", None)
        return shown

    def freshness(self, producer: Producer, *, rehash: bool = False) -> Freshness:
        """Whether ``producer`` would give these samples."""
        wanted: Keys = producer_keys(producer, rehash=rehash)[0]
        return compare(self.invalidation_keys, wanted)

    def __repr__(self) -> str:
        return f"<parbake.ComputedStore of {self.producer.name}: {self._shown()}>"


def _runs(numbers: NDArray[np.int64], width: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover ascending ``numbers`` and nothing else, of at most ``width``."""
    for first, end in adjoining(numbers):
        low, high = int(numbers[first]), int(numbers[end - 1]) + 1
        yield from ((start, min(start + width, high)) for start in range(low, high, width))
