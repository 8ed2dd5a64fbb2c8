"""Bake expensive training data once; know when it is stale; read it at the speed of memory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers, kept in step with _HOMES by a test; "as" says that it is given on
    from parbake.loaders.batch_loader import BatchLoader as BatchLoader
    from parbake.loaders.block_shuffle import BlockShuffle as BlockShuffle
    from parbake.loaders.dataset import StoreDataset as StoreDataset
    from parbake.producers.bake import bake as bake
    from parbake.producers.bake import repair as repair
    from parbake.producers.cached import cached as cached
    from parbake.producers.computed import ComputedStore as ComputedStore
    from parbake.producers.convert import convert as convert
    from parbake.producers.dry_run import DryRun as DryRun
    from parbake.producers.dry_run import dry_run as dry_run
    from parbake.producers.executors import process_pool as process_pool
    from parbake.producers.function import from_function as from_function
    from parbake.producers.reporting import Progress as Progress
    from parbake.store.concatenated import Concatenated as Concatenated
    from parbake.store.concatenated import concatenated as concatenated
    from parbake.store.keys import Change as Change
    from parbake.store.keys import Freshness as Freshness
    from parbake.store.keys import Keys as Keys
    from parbake.store.keys import Producer as Producer
    from parbake.store.layout import Coord as Coord
    from parbake.store.layout import Field as Field
    from parbake.store.samples import FieldArray as FieldArray
    from parbake.store.samples import Samples as Samples
    from parbake.store.store import Store as Store
    from parbake.store.store import open_store as open_store
    from parbake.store.verify import Damage as Damage
    from parbake.store.verify import VerifyReport as VerifyReport

__version__ = "0.1.0"

_HOMES = {
    "parbake.loaders.batch_loader": ("BatchLoader",),
    "parbake.loaders.block_shuffle": ("BlockShuffle",),
    "parbake.loaders.dataset": ("StoreDataset",),
    "parbake.producers.bake": ("bake", "repair"),
    "parbake.producers.reporting": ("Progress",),
    "parbake.producers.cached": ("cached",),
    "parbake.producers.computed": ("ComputedStore",),
    "parbake.producers.convert": ("convert",),
    "parbake.producers.dry_run": ("DryRun", "dry_run"),
    "parbake.producers.executors": ("process_pool",),
    "parbake.producers.function": ("from_function",),
    "parbake.store.concatenated": ("Concatenated", "concatenated"),
    "parbake.store.keys": ("Change", "Freshness", "Keys", "Producer"),
    "parbake.store.layout": ("Coord", "Field"),
    "parbake.store.samples": ("FieldArray", "Samples"),
    "parbake.store.store": ("Store", "open_store"),
    "parbake.store.verify": ("Damage", "VerifyReport"),
    "parbake.errors": (
        "DamagedStoreError",
        "KeysError",
        "LegacyFileError",
        "MeshError",
        "NoSpaceError",
        "NotAStoreError",
        "NotReproducibleError",
        "ParbakeError",
        "ProducerError",
        "RecipeError",
        "SchemaError",
        "StaleStoreError",
        "StoreNotFoundError",
        "StoreReplacedError",
        "StoreWarning",
        "TeacherFileError",
        "UnfinishedStoreError",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME_OF), "__version__"]


def __getattr__(name: str) -> Any:
    """Import a name's module on first use: ``import parbake`` itself stays fast."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'parbake' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
