"""Predicts what a bake will cost, from a few real batches. Writes nothing."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import ParbakeError
from parbake.producers.batches import produce_batch
from parbake.producers.jobs import DEFAULT_CODEC, default_batch_size
from parbake.store import publish
from parbake.store.codecs import CRC_NBYTES, chain_of
from parbake.store.document import StoredField
from parbake.store.keys import Producer, producer_keys
from parbake.store.layout import plan_layout
from parbake.store.store import open_store

_BATCHES = 3  # first, middle, last: costs may depend on where a sample lies


@dataclass(frozen=True)
class DryRun:
    """A prediction. ``missing_samples``: those that a bake would produce; sizes are of the whole store.

    ``read_nbytes_per_sample``: bytes decoded to read one random sample. ``fields``: predicted ratio of
    raw to stored bytes for each.
    """

    samples: int
    missing_samples: int
    nbytes_raw: int
    nbytes_stored: int
    seconds: float
    free_nbytes: int
    read_nbytes_per_sample: int
    fields: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """Raw bytes over stored ones, of all fields together."""
        return self.nbytes_raw / self.nbytes_stored

    @property
    def fits(self) -> bool:
        """Whether what is missing fits on the disk."""
        return self.nbytes_stored * self.missing_samples / self.samples < self.free_nbytes


def dry_run(
    producer: Producer,
    path: str | os.PathLike[str],
    *,
    codec: str | None = None,
    batch_size: int | None = None,
) -> DryRun:
    """Bake three batches in memory and predict size, ratio and time of the whole.

    Raises what ``bake`` raises for the producer.
    """
    _, schema = producer_keys(producer)
    samples = len(producer)
    layout = plan_layout(schema, codec or DEFAULT_CODEC)
    fields = {name: StoredField.of(name, field, layout.fields[name]) for name, field in schema.items()}
    width = min(batch_size or default_batch_size(producer), samples)
    starts = sorted({0, (samples - width) // 2 // width * width, (samples - width) // width * width})[
        :_BATCHES
    ]
    batches: list[dict[str, NDArray[Any]]] = []
    seconds: list[float] = []
    for start in starts:
        began = time.perf_counter()
        batch = produce_batch(producer, fields, tuple(fields), start, start + width).checked(fields)
        batches.append({name: array.copy() for name, array in batch.items()})  # it may reuse its arrays
        seconds.append(time.perf_counter() - began)
    steady = seconds[1:] or seconds  # the first call also loads the model
    ratios = {name: _ratio(field, [batch[name] for batch in batches]) for name, field in fields.items()}
    raw = {name: field.layout.sample_nbytes * samples for name, field in fields.items()}
    missing = samples - _kept(producer, path)
    folder = next(folder for folder in publish.resolved(path).parents if folder.exists())
    return DryRun(
        samples=samples,
        missing_samples=missing,
        nbytes_raw=sum(raw.values()),
        nbytes_stored=int(sum(raw[name] / ratios[name] for name in fields)),
        seconds=seconds[0] - steady[0] + float(np.median(steady)) * missing / width,
        free_nbytes=shutil.disk_usage(folder).free,
        read_nbytes_per_sample=sum(_read_nbytes(field) for field in fields.values()),
        fields=ratios,
    )


def _ratio(field: StoredField, batches: list[NDArray[Any]]) -> float:
    if field.is_scalar:
        return 1.0
    samples = np.concatenate(batches).astype(field.dtype, copy=False)
    chain, chunk = chain_of(field.layout), min(field.layout.chunk_samples, len(samples))
    parts = [samples[i : i + chunk] for i in range(0, len(samples) - chunk + 1, chunk)]
    encoded = sum(len(chain.encode(part)[0]) + CRC_NBYTES for part in parts)
    return sum(part.nbytes for part in parts) / encoded


def _read_nbytes(field: StoredField) -> int:
    return field.layout.sample_nbytes if field.layout.codec == "raw" else field.layout.chunk_nbytes


def _kept(producer: Producer, path: str | os.PathLike[str]) -> int:
    """Samples that a fresh but shorter store already holds."""
    try:
        with open_store(Path(path)) as store:
            changes = store.freshness(producer).changes
            if any(change.field is not None or change.path != "samples" for change in changes):
                return 0
            return min(store.stored_samples, len(producer))
    except ParbakeError:
        return 0
