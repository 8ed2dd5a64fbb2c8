"""What tests share: where the real data lies, if it does."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def broadcast_lstm() -> Path:
    """A real amp model, not part of the repository."""
    file = DATA / "teachers" / "broadcast_lstm_teacher.json"
    if not file.exists():
        pytest.skip(f"needs the real teacher {file.name}, which is not part of the repository")
    return file


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's cache folder."""
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
