"""What tests share: a small bake's surroundings, and where the real data lies, if it does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bakery import Loaf, memory_folder, tiny_slabs
from browser import Browser, chromium
from loading import SAMPLES

from parbake.loaders.dataset import StoreDataset
from parbake.producers.bake import bake
from parbake.store.store import Store, open_store

# netCDF4 else names its filters to all HDF5 libraries of the process: which tests ran before would matter
os.environ.setdefault("HDF5_PLUGIN_PATH", "::")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def broadcast_lstm() -> Path:
    """A real amp model, not part of the repository."""
    file = DATA / "teachers" / "broadcast_lstm_teacher.json"
    if not file.exists():
        pytest.skip(f"needs the real teacher {file.name}, which is not part of the repository")
    return file


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_slabs(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory."""
    with memory_folder(tmp_path) as folder:
        yield folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's cache folder."""
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests of a process."""
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


# ---- a small store to load from; modules that want another one have fixtures of these names themselves


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loading") / "loaf.zarr"
    bake(Loaf(SAMPLES), path, progress=False).close()
    return path


@pytest.fixture(scope="module")
def store(path: Path) -> Store:
    return open_store(path)


@pytest.fixture
def ds(store: Store) -> StoreDataset:
    return StoreDataset(store, with_index=True)
