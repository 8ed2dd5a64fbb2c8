"""Bake expensive training data once; know when it is stale; read it at the speed of memory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the names are, for type checkers; kept in step with _HOMES by a test
    from parbake.loaders.batch_loader import BatchLoader  # noqa: F401
    from parbake.loaders.block_shuffle import BlockShuffle  # noqa: F401
    from parbake.loaders.dataset import StoreDataset  # noqa: F401
    from parbake.producers.bake import bake, repair  # noqa: F401
    from parbake.producers.cached import cached  # noqa: F401
    from parbake.producers.computed import ComputedStore  # noqa: F401
    from parbake.producers.convert import convert  # noqa: F401
    from parbake.producers.dry_run import DryRun, dry_run  # noqa: F401
    from parbake.producers.executors import process_pool  # noqa: F401
    from parbake.producers.function import from_function  # noqa: F401
    from parbake.producers.reporting import Progress  # noqa: F401
    from parbake.store.concatenated import Concatenated, concatenated  # noqa: F401
    from parbake.store.keys import Change, Freshness, Keys, Producer  # noqa: F401
    from parbake.store.layout import Coord, Field  # noqa: F401
    from parbake.store.samples import FieldArray, Samples  # noqa: F401
    from parbake.store.store import Store, open_store  # noqa: F401
    from parbake.store.verify import Damage, VerifyReport  # noqa: F401

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
