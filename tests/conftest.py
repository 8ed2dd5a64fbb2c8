"""What tests share: a small bake's surroundings, and where the real data lies, if it does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bakery import memory_folder, tiny_slabs

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
