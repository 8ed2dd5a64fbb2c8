"""The only place that reads the environment, for the command line and the library alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from platformdirs import user_cache_path


def cache_home() -> Path:
    """Folder of caches: ``PARBAKE_CACHE``, else the user's cache folder. It may not exist yet."""
    chosen = os.environ.get("PARBAKE_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("parbake")


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process with some variables set anew, for a child."""
    return {**os.environ, **changes}
