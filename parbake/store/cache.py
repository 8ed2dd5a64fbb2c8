"""A folder of stores: their names and what each holds."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parbake.errors import DamagedStoreError, NotAStoreError, StoreNotFoundError
from parbake.store.containers import container_of, open_sealed
from parbake.store.keys import Keys, digest
from parbake.store.publish import Unfinished, staging_root, unfinished_bakes
from parbake.store.zarr_format import ROOT

OPERATOR = "mesh-operator"  # the producer of what pairs of meshes keep for themselves

DIGEST_DIGITS = 12
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # module:name
REMOVED = re.compile(r"\..+\.removed-\d+")  # what an interrupted removal leaves
_BAKING = staging_root(Path("x")).name.removeprefix("x")


@dataclass(frozen=True)
class StoreSummary:
    """One store of a folder. What is not known of an unfinished or broken one is None.

    ``inputs``: names of the files and of the code that its recipe names. ``keys``: first digits of the
    digest of the shared keys. ``state``: complete, edited (only descriptions were), unfinished or broken.
    ``slabs``: done and total of an unfinished bake, also of one beside a complete store. ``nbytes_stored``:
    all files, those of unfinished bakes included.
    ``last_used``: when its metadata was last read, as the file system keeps it (often by the day).
    """

    path: Path
    producer: str | None
    inputs: tuple[str, ...]
    keys: str | None
    samples: int | None
    nbytes_raw: int | None
    nbytes_stored: int
    state: str
    slabs: tuple[int, int] | None
    last_used: datetime | None

    @property
    def ratio(self) -> float | None:
        """Raw over stored bytes, of a complete store without an unfinished bake beside it."""
        if self.nbytes_raw is None or self.slabs is not None or not self.nbytes_stored:
            return None
        return self.nbytes_raw / self.nbytes_stored


def store_name(keys: Keys) -> str:
    """File name of a cache entry: producer and digest of all keys.

    Of the shared ones alone two teachers with the same tones would take each other's place.
    """
    producer = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(keys.shared["producer"])).strip(".-")
    everything = digest({"shared": keys.shared, "fields": keys.fields})
    return f"{producer or 'store'}-{everything[:DIGEST_DIGITS]}.zarr"


def list_stores(folder: Path) -> list[StoreSummary]:
    """The stores directly in ``folder``, by name; what is not parbake's is passed over.

    Raises OSError where the folder cannot be read.
    """
    names = {
        child.name.removesuffix(_BAKING)
        for child in folder.iterdir()
        if child.is_dir() or container_of(child) != "directory"
    }
    summaries = (_summary(folder / name) for name in sorted(names) if name and not REMOVED.fullmatch(name))
    return [summary for summary in summaries if summary is not None]


def _summary(path: Path) -> StoreSummary | None:
    bakes = unfinished_bakes(path)
    furthest: Unfinished | None = max(bakes, key=lambda bake: bake.slabs_done, default=None)
    slabs = (furthest.slabs_done, furthest.slabs) if furthest is not None else None
    stored = nbytes_of(path)
    marker = _marker(path)
    last_used = _last_used(marker)
    producer = keys = samples = raw = None
    inputs: tuple[str, ...] = ()
    try:
        with _unread(marker):
            contents = open_sealed(path)
        if contents is None or contents.sealed is None:
            raise NotAStoreError(f"{path}: not baked by parbake")
        contents.files.close()
        document = contents.document
        producer, keys = str(document.keys.shared["producer"]), document.keys.digest[:DIGEST_DIGITS]
        samples = document.samples
        inputs = _inputs(document.provenance.get("recipe"))
        raw = samples * sum(field.layout.sample_nbytes for field in document.fields.values())
        state = "edited" if contents.sealed.edited else "complete"
    except DamagedStoreError:
        state = "broken"
    except (StoreNotFoundError, NotAStoreError):
        if furthest is None:
            return None
        state = "unfinished"
        producer, samples = furthest.plan.get("producer"), furthest.plan.get("samples")
    return StoreSummary(path, producer, inputs, keys, samples, raw, stored, state, slabs, last_used)


def recorded_files(recipe: Any) -> dict[str, str]:
    """The files that a recorded recipe names, by parameter."""
    return {name: text for name, text in _texts(recipe).items() if text.startswith("/")}


def _texts(recipe: Any) -> dict[str, str]:
    params = recipe.get("params") if isinstance(recipe, Mapping) else None
    return {n: v for n, v in params.items() if isinstance(v, str)} if isinstance(params, Mapping) else {}


def _inputs(recipe: Any) -> tuple[str, ...]:
    texts = _texts(recipe).values()
    return tuple(Path(text).name for text in texts if text.startswith("/") or _CODE.fullmatch(text))


@contextlib.contextmanager
def _unread(file: Path) -> Iterator[None]:
    """Keeps a file's time of last use: to list a store is not to use it."""
    try:
        before = file.stat()
    except OSError:
        before = None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # replaced by a bake, or on a read-only disk
            if before is not None and file.stat().st_atime_ns != before.st_atime_ns:
                os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def used_now(path: Path) -> None:
    """Note that a store is used, for ``clear``: file systems keep it by the day, if at all."""
    with contextlib.suppress(OSError):  # a folder of somebody else's
        file = _marker(path)
        os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))


def _marker(path: Path) -> Path:
    """The file whose time of last use is that of a store."""
    return path / ROOT if path.is_dir() else path


def _last_used(file: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(file.stat().st_atime, UTC)
    except OSError:
        return None


def nbytes_of(path: Path) -> int:
    """Bytes that a store takes, its unfinished bakes included."""
    return _nbytes(path) + _nbytes(staging_root(path))


def _nbytes(folder: Path) -> int:
    if folder.is_file():
        return folder.stat().st_size
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):  # being replaced by a bake
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
