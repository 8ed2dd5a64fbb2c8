"""Get or bake: a folder of stores, each under a name made of its producer and keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, cast

from parbake import settings
from parbake.errors import DamagedStoreError, StoreNotFoundError, UnfinishedStoreError
from parbake.producers.bake import bake
from parbake.producers.computed import ComputedStore
from parbake.producers.reporting import Report
from parbake.store.cache import store_name, used_now
from parbake.store.keys import Producer, producer_keys
from parbake.store.store import Store, open_store


def cached(
    producer: Producer,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    use_cache: bool = True,
    codec: str | None = None,
    batch_size: int | None = None,
    progress: Report | Literal[False] | None = None,
    rehash: bool = False,
    command: str | None = None,
) -> Store | ComputedStore:
    """The store of ``producer`` in a cache folder: opened where it is baked already, else baked first.

    ``cache_dir``: default the environment variable ``PARBAKE_CACHE``, else the user's cache folder. A
    producer whose keys differ has a store of its own, so nothing stale is ever handed back; two
    processes at once bake once. A folder that cannot be written to still serves what is in it.
    ``use_cache=False``: no store, samples are computed as they are asked for; what a producer keeps for
    itself, as operators between meshes, stays in the default folder. The rest as for ``bake``, which says
    what is raised.

    Returns a view of ``len(producer)`` samples.
    """
    if not use_cache:
        return ComputedStore(producer, rehash=rehash)
    folder = settings.cache_home() if cache_dir is None else Path(cache_dir).expanduser()
    producer = at_home(producer, folder)
    keys, _ = producer_keys(producer, rehash=rehash)
    path = folder / store_name(keys)
    try:
        store = open_store(path)
    except (StoreNotFoundError, UnfinishedStoreError, DamagedStoreError):
        store = None  # bake() says what is wrong, or mends it
    if store is not None:
        if store.compared(keys, len(producer)) and codec in (None, store.provenance["codec"]):
            used_now(path)
            return store.first(len(producer))
        store.close()
    return bake(
        producer,
        path,
        codec=codec,
        batch_size=batch_size,
        progress=progress,
        rehash=rehash,
        command=command,
    )


def at_home(producer: Producer, folder: Path) -> Producer:
    """``producer`` with what it keeps for itself, if anything, in the same cache folder."""
    in_cache = getattr(producer, "in_cache", None)
    return producer if in_cache is None else cast(Producer, in_cache(folder))
