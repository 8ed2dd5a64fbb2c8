"""Legacy caches (`torch.save`, pickle) as producers: `bake(read_legacy(path), store)` converts one."""

from __future__ import annotations

import gzip
import mmap
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import LegacyFileError, SchemaError, StoreNotFoundError, described, one_line
from parbake.producers.legacy.columns import LEFT_OUT, Column, columns_of
from parbake.producers.legacy.machine import unpickled
from parbake.store.keys import CONVERTED, JSON
from parbake.store.layout import Field, check_schema

LEGACY_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".pkl.gz", ".pickle.gz")

_ZIP = b"PK\x03\x04"
_GZIP = b"\x1f\x8b"
_TORCH_BEFORE_ZIP = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that such files begin with
)
_OTHERS = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x93NUMPY": "npy",
    b"\x89HDF": "HDF5",
}
_SHOWN_CHARS = 1_000  # of a message
_STEP_NBYTES = 1 << 20
_BATCH_SAMPLES = 64
_BATCH_NBYTES = 64 * 1024**2  # of all fields: a batch is copied


def is_legacy(path: str | os.PathLike[str]) -> bool:
    """Whether the name is one of ``torch.save`` or pickle files."""
    return Path(path).name.lower().endswith(LEGACY_SUFFIXES)


def read_legacy(
    path: str | os.PathLike[str],
    fields: Sequence[str] | None = None,
    *,
    like: Mapping[str, Field] | None = None,
) -> LegacyCache:
    """The samples of a file that ``torch.save`` or pickle wrote, as a producer.

    Read are a list of samples (dicts or tuples of arrays, tensors and numbers), and stacked samples: a dict,
    tuple or list of arrays, or one array. ``fields``: of dicts the entries to take, in this order; of tuples
    a name for each entry, ``"-"`` for one to leave out. ``like``: a schema that the file must fit, which
    gives names (in its order), dimensions, units, descriptions and coordinates. bfloat16 becomes float32.

    Nothing that the file names is run. Tensors of a zip-format file, and arrays of a pickle of protocol 3 or
    later, stay in the file until they are baked.

    Raises LegacyFileError, StoreNotFoundError.
    """
    file = Path(path)
    content = _content(file)
    names = fields if fields is not None or like is None else tuple(like)
    try:
        columns = columns_of(content, names)
        schema = _schema(columns) if like is None else _schema_like(columns, like)
        checked = check_schema(schema)
    except (LegacyFileError, SchemaError) as error:
        raise LegacyFileError(f"{path}: {_shown(error)}") from None
    return LegacyCache(file, fields, like, {name: columns[name] for name in checked}, checked)


class LegacyCache:
    """What ``read_legacy`` gives. Picklable by path: it is read again where it is needed."""

    version = 1

    def __init__(
        self,
        path: Path,
        fields: Sequence[str] | None,
        like: Mapping[str, Field] | None,
        columns: Mapping[str, Column],
        schema: Mapping[str, Field],
    ) -> None:
        self.path = path
        self._asked = (fields, like)
        self._columns = columns
        self._schema = schema

    @property
    def name(self) -> str:
        return CONVERTED

    @property
    def batch_size(self) -> int:
        """64 samples, fewer where these are large."""
        nbytes = sum(field.sample_nbytes for field in self._schema.values())
        return max(1, min(_BATCH_SAMPLES, _BATCH_NBYTES // nbytes))

    def schema(self) -> Mapping[str, Field]:
        return self._schema

    def invalidation_keys(self) -> Mapping[str, JSON]:
        """The file by content and the entry of each field; what the values depend on, nobody knows."""
        entries = {name: column.entry for name, column in self._columns.items()}
        return {"depends_on": "unknown", "file": self.path, "entries": entries}

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        return {name: self._columns[name].rows(start, stop, self._schema[name].dtype) for name in fields}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reread, (self.path.absolute(), *self._asked)

    def __repr__(self) -> str:
        return f"<LegacyCache {str(self.path)!r}: {len(self)} samples; {', '.join(self._schema)}>"


def _reread(path: Path, fields: Sequence[str] | None, like: Mapping[str, Field] | None) -> LegacyCache:
    return read_legacy(path, fields, like=like)


def _shown(text: object) -> str:
    """A message in one line, whatever names the file gave it."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))
    return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}..."


# ---- fields


def _schema(columns: Mapping[str, Column]) -> dict[str, Field]:
    return {name: _field(name, column) for name, column in columns.items()}


def _field(name: str, column: Column) -> Field:
    form = column.form
    dims = tuple(f"{name}_{axis}" for axis in range(len(form.shape)))
    try:
        # NaN is data here: who wrote the file may have meant it
        return Field(form.shape, form.dtype, dims, allow_nan=form.dtype.kind in "fc")
    except SchemaError as error:
        raise SchemaError(f"field {name!r}: {error}") from None


def _schema_like(columns: Mapping[str, Column], like: Mapping[str, Field]) -> dict[str, Field]:
    """``like``, if the columns are of its names, shapes and dtypes. Raises LegacyFileError."""
    if lacking := [name for name in like if name not in columns]:
        raise LegacyFileError(
            f"the recipe has field {lacking[0]!r}, which is not among {', '.join(columns)}; "
            f"name all: --fields {','.join(like)} (in the order of the file's entries)"
        )
    if more := [name for name in columns if name not in like]:
        raise LegacyFileError(
            f"field {more[0]!r} is not the recipe's, which has {', '.join(like)}; leave it out of --fields"
        )
    for name, field in like.items():
        form = columns[name].form
        fits = _number_fits(form.dtype, field.dtype) if form.number else _same_number(form.dtype, field.dtype)
        if form.shape != field.shape or not fits:
            said = f"{field.dtype.name} {list(field.shape)}" if field.shape else field.dtype.name
            raise LegacyFileError(
                f"field {name!r}: the file holds {form}, the recipe says {said}; convert it without the "
                "recipe, or bake the recipe anew"
            )
    return {name: replace(field, keys={}) for name, field in like.items()}  # nobody knows that they hold


def _same_number(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    return one.newbyteorder("=") == other.newbyteorder("=")


def _number_fits(number: np.dtype[Any], declared: np.dtype[Any]) -> bool:
    """Whether a Python number may take a field's dtype: only rounding to fewer digits may change it."""
    kinds = "bifc"
    return kinds.index(number.kind) <= kinds.index(declared.kind.replace("u", "i"))


# ---- files


def _content(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(len(_TORCH_BEFORE_ZIP))
            if start.startswith(_GZIP):
                with _decompressed(path, file) as plain:
                    return _of_pickle(plain, path)
            if start.startswith(_ZIP) or start == _TORCH_BEFORE_ZIP:
                return _of_torch(path, mapped=start.startswith(_ZIP))
            if other := next((name for magic, name in _OTHERS.items() if start.startswith(magic)), None):
                raise LegacyFileError(
                    f"{path}: is a file of {other}; torch.save and pickle files (also gzip) are read"
                )
            return _of_pickle(file, path)
    except FileNotFoundError:
        raise StoreNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise LegacyFileError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None


def _of_pickle(file: IO[bytes], path: Path) -> Any:
    if not os.fstat(file.fileno()).st_size:
        raise LegacyFileError(f"{path}: is empty")
    return unpickled(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path)


def _decompressed(path: Path, file: IO[bytes]) -> IO[bytes]:
    """The content of a gzip file in a nameless temporary one, which may take half of the free space."""
    file.seek(0)
    folder = tempfile.gettempdir()
    limit = shutil.disk_usage(folder).free // 2
    plain = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - handed on, closed by who reads it
    try:
        with gzip.GzipFile(fileobj=file) as unzipped:
            while block := unzipped.read(_STEP_NBYTES):
                if plain.tell() + len(block) > limit:
                    raise LegacyFileError(
                        f"{path}: decompresses to over {limit / 2**30:.1f} GiB, half of what "
                        f"{folder} has free; gunzip it where there is room, and convert that"
                    )
                plain.write(block)
        plain.flush()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        plain.close()
        raise LegacyFileError(f"{path}: the gzip file is cut or damaged: {one_line(error)}") from None
    except BaseException:
        plain.close()
        raise
    return plain


def _of_torch(path: Path, *, mapped: bool) -> Any:
    """What ``torch.save`` wrote, with plain containers and tensors only; of a zip-format file, mapped."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except OSError:
        raise
    except Exception as error:
        raise LegacyFileError(f"{path}: {_shown(_refusal(error))}") from None


def _refusal(error: Exception) -> str:
    """Why ``torch.load`` refused, without its advice to run what the file holds."""
    if found := re.search(r"GLOBAL\s+([^\s`']+)", str(error)):
        name = found[1]
        numpy = " (NumPy arrays: torch.from_numpy)" if name.startswith("numpy.") else ""
        return (
            f"holds {name}, which is code, not data; only containers, numbers and tensors are read: where "
            f"you trust the file, load it yourself and save its samples as tensors{numpy}"
        )
    return f"torch.load cannot read it: {described(error)[:200]}; save its samples again as tensors"


__all__ = ["LEFT_OUT", "LEGACY_SUFFIXES", "LegacyCache", "is_legacy", "read_legacy"]
