"""The engine ``"parbake"`` of xarray: one store as a dataset, a folder of stores as a tree."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from parbake.errors import RecipeError, StoreWarning

if TYPE_CHECKING:
    from parbake.store.cache import StoreSummary
    from parbake.store.chunks import Checksums
    from parbake.store.store import Store

_ZARR_ROOTS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")


class ParbakeBackend(BackendEntrypoint):
    """Opens what ``parbake.open_store`` opens, lazily; see ``browse.xarrays``.

    ``sample_dim``, ``checksums``, ``mmap``: as there. No values are decoded: units are told, not applied.
    """

    description = "Open parbake stores (folder, zip, HDF5), and folders of them, through memory maps"
    supports_groups = True

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        sample_dim: str | None = None,
        checksums: Checksums = "first",
        mmap: bool = True,
    ) -> xr.Dataset:
        """One store, by its path, or an open one, which stays its owner's to close.

        Raises what ``open_store`` raises, and RecipeError for a folder of stores.
        """
        from parbake.browse.xarrays import lazy_dataset
        from parbake.store.store import Store, open_store

        if isinstance(filename_or_obj, Store):
            return _without(lazy_dataset(filename_or_obj), drop_variables)
        if _stores_in(Path(filename_or_obj)):
            raise RecipeError(f"{filename_or_obj}: a folder of stores; open it with xarray.open_datatree")
        store = open_store(filename_or_obj, checksums=checksums, mmap=mmap, sample_dim=sample_dim)
        return _closing(store, drop_variables)

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        **options: Any,
    ) -> dict[str, xr.Dataset]:
        """One store under ``/``; those of a folder each under its name less the suffix.

        ``options``: of ``open_dataset``. Unfinished and broken stores are left out with a warning, operators
        between meshes without one.
        """
        from parbake.store.store import Store

        found = [] if isinstance(filename_or_obj, Store) else _stores_in(Path(filename_or_obj))
        if not found:
            return {"/": self.open_dataset(filename_or_obj, drop_variables=drop_variables, **options)}
        groups = {"/": xr.Dataset()}
        for name, one in _shown(found).items():
            dataset = self.open_dataset(one.path, drop_variables=drop_variables, **options)
            if one.inputs:  # a cache names its stores by their keys
                dataset.attrs["parbake_inputs"] = ", ".join(one.inputs)
            groups[f"/{name}"] = dataset
        return groups

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        **options: Any,
    ) -> xr.DataTree:
        """The tree of ``open_groups_as_dict``."""
        groups = self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables, **options)
        tree = xr.DataTree.from_dict(groups)
        for name, dataset in groups.items():
            tree[name].set_close(dataset._close)
        return tree

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether parbake wrote this, and no other engine asks for it.

        A folder ``*.zarr`` is left to the engine ``zarr``, whose options (``group``, ``consolidated``) go on
        working; the engines for HDF5 are asked before this one.
        """
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        path = Path(filename_or_obj)
        if path.suffix == ".zarr" or not path.exists():
            return False
        from parbake.store.containers import is_ours

        return is_ours(path) or bool(_stores_in(path))


def _closing(store: Store, drop_variables: str | Iterable[str] | None) -> xr.Dataset:
    """The dataset of a store that closes with it."""
    from parbake.browse.xarrays import lazy_dataset

    try:
        dataset = _without(lazy_dataset(store), drop_variables)
    except BaseException:
        store.close()
        raise
    dataset.set_close(store.close)
    dataset.encoding["source"] = str(store.path)
    return dataset


def _without(dataset: xr.Dataset, drop_variables: str | Iterable[str] | None) -> xr.Dataset:
    names = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
    return dataset.drop_vars(names, errors="ignore")


def _stores_in(folder: Path) -> list[StoreSummary]:
    """The stores in a folder that is none itself."""
    from parbake.store.cache import list_stores

    if not folder.is_dir() or any((folder / name).exists() for name in _ZARR_ROOTS):
        return []
    return list_stores(folder)


def _shown(stores: list[StoreSummary]) -> dict[str, StoreSummary]:
    """The stores that are whole, by their names in a tree."""
    from parbake.store.cache import OPERATOR

    whole = [store for store in stores if store.state in ("complete", "edited")]
    for store in stores:
        if store not in whole:
            warnings.warn(f"{store.path}: {store.state}, left out", StoreWarning, stacklevel=4)
    whole = [store for store in whole if store.producer != OPERATOR] or whole
    names = [_stem(store.path) for store in whole]
    return {
        name if names.count(name) == 1 else store.path.name: store
        for name, store in zip(names, whole, strict=True)
    }


def _stem(path: Path) -> str:
    """``train`` of ``train.zarr``, ``train.zarr.zip`` and ``train.h5``."""
    return (
        path.name.removesuffix(".zip").removesuffix(".zarr")
        if path.suffix in (".zip", ".zarr")
        else path.stem
    )
