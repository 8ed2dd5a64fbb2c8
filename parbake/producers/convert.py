"""Makes a store of a store or of a file that others wrote, in another container or with another codec."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError, NoSpaceError, RecipeError, SchemaError, StoreNotFoundError
from parbake.producers.bake import baking, run_job
from parbake.producers.jobs import BakeOptions, Job, Request, fresh_store, new_job, recoding_job
from parbake.producers.legacy.cache import is_legacy, read_legacy
from parbake.producers.recipe import recipe_of
from parbake.producers.reporting import Report, Reporter
from parbake.store import publish
from parbake.store.containers import seal_of
from parbake.store.differences import compare_stores
from parbake.store.durable import write_durably
from parbake.store.keys import CONVERTED, Producer, canonical, producer_keys
from parbake.store.layout import Coord, Field, plain_name
from parbake.store.pack import pack
from parbake.store.publish import Staging
from parbake.store.store import Store, open_store

_CHECK_NBYTES = 16 * 1024**2


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    codec: str | None = None,
    fields: Sequence[str] | None = None,
    sample_dim: str | None = None,
    recipe: Producer | None = None,
    progress: Report | Literal[False] | None = None,
    command: str | None = None,
) -> Store:
    """Make a store at ``target``: a directory, or by its suffix a zip (``.zip``) or HDF5 file (``.h5``).

    A store of parbake's is moved, its encoded chunks as they are; with another ``codec`` it is encoded
    again. It keeps its keys. Zarr, HDF5 and NetCDF4 files of others, and legacy ``.pt`` and ``.pkl`` caches,
    are baked with keys that fit no producer. ``recipe``: a producer whose keys the caller vouches for, noted
    in the provenance; the values must fit its schema. ``fields``: which of them, and names for the entries
    of tuples. ``sample_dim``: as in ``open_store``. ``progress``, ``command``: as in ``bake``.

    What was written is compared with the source before it takes its place. Returns the open store. Raises
    RecipeError where something lies at ``target`` already, StoreNotFoundError, NotAStoreError,
    DamagedStoreError, SchemaError.
    """
    path, file = publish.resolved(target), Path(source).expanduser()
    if path.exists():
        raise _something_there(path)
    publish.check_target(path)
    if not file.exists():
        raise StoreNotFoundError(f"{source}: nothing there")
    if path.is_relative_to(file.resolve()):
        raise RecipeError(f"{target}: lies in {source} itself; choose a name outside of it")
    options = BakeOptions(codec, None, None, command)
    if is_legacy(file) and file.is_file():
        like = dict(recipe.schema()) if recipe is not None else None
        cache = read_legacy(file, fields, like=like)
        return _bake_from(cache, path, recipe, options, file, progress)
    with open_store(file, sample_dim=sample_dim) as store:
        if store.is_foreign:
            producer = _Foreign(store, tuple(store.chosen(fields)))
            return _bake_from(producer, path, recipe, options, file, progress, store.contents.notices)
        if fields is not None or recipe is not None:
            raise RecipeError(f"{file}: a store of parbake's has its own fields and keys, and keeps them")
        if codec in (None, store.provenance["codec"]):
            return _move(store, path, command, progress)
        return _recode(store, path, options, progress)


def _move(store: Store, target: Path, command: str | None, progress: Report | Literal[False] | None) -> Store:
    """The same encoded chunks in another container."""
    try:
        with baking(target, target, progress) as reporter:
            if not target.exists():
                _pack_in(store, target, command, reporter)
            elif seal_of(target) != store.contents.version:
                raise _something_there(target)
            return open_store(target)
    except NoSpaceError as error:  # unlike a bake it leaves nothing to go on from
        raise NoSpaceError(f"{target}: the disk is full; nothing is left of what was written") from error


def _pack_in(store: Store, target: Path, command: str | None, reporter: Reporter) -> None:
    staging = Staging(publish.staging_root(target) / "convert")
    staging.remove()
    staging.folder.mkdir(parents=True)
    # so that what a kill leaves is told, and cleared, as an unfinished bake is
    plan = {"slabs": 1, "samples": store.stored_samples, "command": command, "producer": None}
    try:
        write_durably(staging.plan, canonical(plan).encode())
        reporter.begin(store.stored_samples)
        moved = _Moved(store, reporter)
        pack(store, staging.made(target), moved)
        moved.all_moved()
        publish.swap_in(staging, target, store.contents.version)
    except BaseException:
        staging.remove()
        raise
    reporter.finish()


class _Moved:
    """Tells bytes moved as samples."""

    def __init__(self, store: Store, reporter: Reporter) -> None:
        self._nbytes_total = max(1, sum(map(store.nbytes_stored, store.fields)))
        self._samples_total = store.stored_samples
        self._reporter = reporter
        self._nbytes = self._samples = 0

    def __call__(self, nbytes: int) -> None:
        self._nbytes += nbytes
        samples = self._samples_total * self._nbytes // self._nbytes_total
        self._reporter.produced(samples - self._samples, self._nbytes)
        self._samples = samples

    def all_moved(self) -> None:
        """What is left of the samples: containers differ in what they add to chunks."""
        self._reporter.produced(self._samples_total - self._samples, self._nbytes)


def _recode(
    store: Store, target: Path, options: BakeOptions, progress: Report | Literal[False] | None
) -> Store:
    """The same samples in other chunks: keys, provenance and seed stay."""
    producer = _Carried(
        str(store.invalidation_keys.shared["producer"]),
        store.provenance["seed_drawn"],
        tuple(store.provenance["notices"]),
    )
    schema = _schema(store, tuple(store.fields))
    request = Request(
        cast(Producer, producer),
        target,
        store.invalidation_keys,
        schema,
        store.stored_samples,
        options,
        store.provenance["recipe"],
        {"file": str(store.path)},
        partial(_check_equal, store),
    )
    return _run(request, lambda: recoding_job(request, store), progress)


def _check_equal(source: Store, made: Store) -> None:
    if found := compare_stores(source, made).all:
        raise DamagedStoreError(f"{source.path}: what was written of it differs ({found[0]}); try again")


def _bake_from(
    producer: Producer,
    target: Path,
    recipe: Producer | None,
    options: BakeOptions,
    source: Path,
    progress: Report | Literal[False] | None,
    notices: Sequence[str] = (),
) -> Store:
    """Values of others, checked as a producer's are, under the keys of ``recipe`` where there is one."""
    wanted, schema = producer_keys(producer if recipe is None else recipe)
    found = producer.schema()
    if recipe is not None:
        _check_fits(source, found, schema)
    samples = len(producer)
    if not samples:
        raise RecipeError(f"{source}: no samples; nothing to convert")
    request = Request(
        producer,
        target,
        wanted,
        schema,
        samples,
        options,
        None if recipe is None else recipe_of(recipe),
        {"file": str(source.absolute()), "keys_vouched": recipe is not None, "notices": list(notices)},
        partial(_check_values, producer),
    )
    return _run(request, lambda: new_job(request), progress)


def _run(request: Request, job: Callable[[], Job], progress: Report | Literal[False] | None) -> Store:
    """Bake a store where there was none before the lock was held.

    What is there then was whole but for its name when an earlier run was killed, or another has just made it.
    """
    target = request.target
    with baking(target, target, progress) as reporter:
        if not target.exists():
            run_job(job(), reporter)
            return open_store(target)
        made = fresh_store(request)
        if made is not None and made.stored_samples == request.samples and _passes(request, made):
            return made
        raise _something_there(target)


def _passes(request: Request, made: Store) -> bool:
    assert request.check is not None
    try:
        request.check(made)
    except DamagedStoreError:
        return False
    return True


def _something_there(target: Path) -> RecipeError:
    return RecipeError(f"{target}: there is something already; remove it, or choose another name")


def _check_fits(source: Path, found: Mapping[str, Field], wanted: Mapping[str, Field]) -> None:
    """Raises SchemaError where a file does not hold what a recipe gives."""
    for name, field in wanted.items():
        there = found.get(name)
        if there is None:
            raise SchemaError(
                f"{source}: no field {name!r}, which the recipe has; there are {', '.join(found)}"
            )
        if (there.shape, there.dtype) != (field.shape, field.dtype):
            raise SchemaError(
                f"{source}: field {name!r} holds {there.dtype} {list(there.shape)}, the recipe says "
                f"{field.dtype} {list(field.shape)}"
            )


def _check_values(producer: Producer, made: Store) -> None:
    """Compare what was written with what the file gives, read again."""
    step = max(1, _CHECK_NBYTES // sum(field.layout.sample_nbytes for field in made.fields.values()))
    for start in range(0, made.samples, step):
        stop = min(start + step, made.samples)
        given = producer.produce(start, stop, tuple(made.fields))
        for name, array in made.read(range(start, stop)).items():
            if np.asarray(given[name]).astype(array.dtype, copy=False).tobytes() != array.tobytes():
                raise DamagedStoreError(
                    f"{made.path}: field {name!r}, samples {start}-{stop - 1}: written is not what was read; "
                    "did the file change meanwhile?"
                )


@dataclass(frozen=True)
class _Carried:
    """Stands for the producer of samples that are carried over: it makes none."""

    name: str
    seed_drawn: int | None
    notices: tuple[str, ...]  # of the bake that made them: they hold of the samples
    seed: int | str | None = None

    def __post_init__(self) -> None:
        if self.seed is None and self.seed_drawn is not None:
            object.__setattr__(self, "seed", "fresh")  # then the one drawn is taken from the old store


class _Foreign:
    """A file that parbake did not write, as a producer."""

    name = CONVERTED
    version = 1

    def __init__(self, store: Store, fields: tuple[str, ...]) -> None:
        self._store = store
        self._names = {plain_name(name): name for name in fields}
        if len(self._names) < len(fields):
            raise RecipeError(
                f"{store.path}: fields {', '.join(fields)} have names that differ in their groups alone; "
                "name some of them with --fields"
            )

    def schema(self) -> Mapping[str, Field]:
        return {name: _field(self._store, stored) for name, stored in self._names.items()}

    def invalidation_keys(self) -> Mapping[str, Any]:
        """The file by content; what the values depend on, nobody knows."""
        path = self._store.path
        return {"depends_on": "unknown"} | ({"file": path} if path.is_file() else {})

    def __len__(self) -> int:
        return self._store.samples

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        read = self._store.read(range(start, stop), [self._names[name] for name in fields])
        return {name: read[self._names[name]] for name in fields}


def _schema(store: Store, names: Sequence[str]) -> dict[str, Field]:
    return {name: _field(store, name) for name in names}


def _field(store: Store, name: str) -> Field:
    """What a schema says of a stored field, under names that a store may have."""
    stored = store.fields[name]
    coords = {
        plain_name(n): Coord(
            coord.labels if coord.labels is not None else coord.values,
            coord.units,
            dim=None if coord.dim is None else plain_name(coord.dim),
        )
        for n, coord in store.coords.items()
        if (coord.dim or n) in stored.dims
    }
    return Field(
        stored.shape,
        stored.dtype,
        tuple(map(plain_name, stored.dims)),
        units=stored.units,
        description=stored.description,
        coords=coords,
        allow_nan=stored.allow_nan,
    )
