"""What a legacy cache holds as columns: one field each, of stacked arrays or of a list of samples."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parbake.errors import LegacyFileError
from parbake.producers.batches import to_host
from parbake.producers.function import VALUE
from parbake.producers.legacy.admitted import Opaque
from parbake.store.layout import DTYPES

LEFT_OUT = "-"  # in place of a name: this entry of the tuples is not wanted
_NUMBER_DTYPES = {bool: "bool", int: "int64", float: "float64", complex: "complex128"}
_LISTED_MAX = 12  # entries described in a message


@dataclass(frozen=True)
class Form:
    """What one value is. ``number``: a Python number, whose dtype is only the widest that it may take."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    number: bool = False

    def __str__(self) -> str:
        return f"{self.dtype.name} {list(self.shape)}" if self.shape else self.dtype.name


class Column(Protocol):
    """The samples of one field, as the file has them."""

    @property
    def form(self) -> Form: ...  # of one sample
    @property
    def entry(self) -> str: ...  # which part of the file's content it is
    def __len__(self) -> int: ...
    def rows(self, start: int, stop: int, dtype: np.dtype[Any]) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Stacked:
    """A field whose samples lie in one array, [sample, *shape]."""

    values: Any
    form: Form
    entry: str

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, start: int, stop: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        return hosted(self.values[start:stop])


@dataclass(frozen=True)
class Listed:
    """A field of samples in a list: the value at ``key`` of each, or each itself where key is None."""

    samples: Sequence[Any]
    key: Any
    form: Form
    entry: str

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, start: int, stop: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        array = np.empty((stop - start, *self.form.shape), dtype)
        for row, sample in enumerate(self.samples[start:stop]):
            value = sample if self.key is None else sample[self.key]
            array[row] = value if isinstance(value, bool | int | float | complex) else hosted(value)
        return array


def hosted(value: Any) -> NDArray[Any]:
    """An array or tensor on the host."""
    array, _ = to_host(value, "legacy cache", VALUE)
    return array


def columns_of(content: Any, names: Sequence[str] | None) -> dict[str, Column]:
    """The columns of a file's content by field name, of equal lengths, each of one form throughout.

    ``names``: of dicts, which entries to take, in this order (None: all); of tuples, a name for each entry,
    LEFT_OUT for one that is not wanted. Raises LegacyFileError.
    """
    if names is not None and (not names or len(set(names) - {LEFT_OUT}) < len(names) - names.count(LEFT_OUT)):
        raise LegacyFileError(f"fields {','.join(names)!r}: give each name once, at least one")
    columns = _columns(_without_wrapping(content), names)
    lengths = {name: len(column) for name, column in columns.items()}
    if not columns:
        raise LegacyFileError("every entry is left out; name at least one")
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise LegacyFileError(
            f"entries of different lengths along the sample axis ({said}); name fields that agree"
        )
    if not next(iter(lengths.values())):
        raise LegacyFileError("holds no samples")
    return columns


def _columns(content: Any, names: Sequence[str] | None) -> dict[str, Column]:
    if _is_array(content):
        [name] = _names_of_entries([content], names, "one array") if names is not None else [VALUE]
        return {} if name == LEFT_OUT else {name: _stacked(content, name, "the array")}
    if isinstance(content, Mapping):
        chosen = _chosen(content, names, "the dict")
        return {name: _column_of_entry(content[name], name) for name in chosen}
    if not isinstance(content, list | tuple):
        raise LegacyFileError(
            f"holds {_described(content)}; a list of samples (dicts or tuples of arrays), or stacked arrays "
            "in a dict, list or tuple, are read"
        )
    if not content:
        raise LegacyFileError("holds no samples")
    first = content[0]
    if isinstance(first, Mapping):
        return _of_dicts(content, names)
    if isinstance(first, list | tuple):
        return _of_tuples(content, names)
    if isinstance(content, list) and names is not None and len(names) == 1 and len(content) > 1:
        return {names[0]: _listed(content, None, names[0], "each item")}
    if not isinstance(content, list) or _is_array(first):
        return _of_stack(content, names)
    raise LegacyFileError(
        f"holds a list of {_described(first)}; numbers need a name (--fields NAME), anything else arrays"
    )


def _without_wrapping(content: Any) -> Any:
    """``content``, or the only entry of a dict that can be samples: {"samples": [...], "config": {...}}."""
    if not isinstance(content, Mapping) or any(_is_array(value) for value in content.values()):
        return content
    wrapped = [value for value in content.values() if _is_samples(value)]
    return wrapped[0] if len(wrapped) == 1 else content


def _is_samples(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_is_array(entry) for entry in value.values())
    if not isinstance(value, list | tuple) or not value:
        return False
    first = value[0]
    entries = (
        first.values() if isinstance(first, Mapping) else first if isinstance(first, list | tuple) else ()
    )
    return any(form_of(entry) is not None for entry in entries)


def _of_dicts(samples: Sequence[Any], names: Sequence[str] | None) -> dict[str, Column]:
    first = samples[0]
    chosen = _chosen(first, names, "the samples")
    wanted = set(first) if names is None else set(chosen)
    for number, sample in enumerate(samples):
        if not isinstance(sample, Mapping):
            raise LegacyFileError(f"sample {number} is {_described(sample)} where sample 0 is a dict")
        if lacking := sorted(wanted - sample.keys()):
            raise LegacyFileError(
                f"sample {number} has no {lacking[0]!r}; name fields that all have: --fields"
            )
        if names is None and len(sample) > len(wanted):
            more = sorted(map(str, sample.keys() - wanted))
            raise LegacyFileError(
                f"sample {number} has {more[0]!r} too, which sample 0 has not; name what all have: "
                f"--fields {','.join(chosen)}"
            )
    return {name: _listed(samples, name, name, name) for name in chosen}


def _of_tuples(samples: Sequence[Any], names: Sequence[str] | None) -> dict[str, Column]:
    first = samples[0]
    named = _names_of_entries(first, names, "samples")
    for number, sample in enumerate(samples):
        if not isinstance(sample, list | tuple) or len(sample) != len(first):
            raise LegacyFileError(
                f"sample {number} is {_described(sample)} where sample 0 is {_described(first)}"
            )
    return {
        name: _listed(samples, entry, name, str(entry))
        for entry, name in enumerate(named)
        if name != LEFT_OUT
    }


def _of_stack(arrays: Sequence[Any], names: Sequence[str] | None) -> dict[str, Column]:
    named = _names_of_entries(arrays, names, "stacked entries")
    return {
        name: _column_of_entry(array, name, str(entry))
        for (entry, array), name in zip(enumerate(arrays), named, strict=True)
        if name != LEFT_OUT
    }


def _names_of_entries(entries: Sequence[Any], names: Sequence[str] | None, of: str) -> Sequence[str]:
    if names is not None and len(names) == len(entries):
        return names
    forms = [_described(entry) for entry in entries[:_LISTED_MAX]] + ["..."] * (len(entries) > _LISTED_MAX)
    example = ",".join(f"name{i}" for i in range(min(len(entries), _LISTED_MAX)))
    given = "" if names is None else f", and {len(names)} names are given ({','.join(names)})"
    what = f"samples of {len(entries)} entries" if of == "samples" else f"{len(entries)} {of}"
    raise LegacyFileError(
        f"holds {what}: {', '.join(forms)}{given}; name each: --fields {example} "
        f"({LEFT_OUT!r} for one to leave out)"
    )


def _chosen(entries: Mapping[Any, Any], names: Sequence[str] | None, of: str) -> list[str]:
    for name in entries if names is None else names:
        if not isinstance(name, str):
            raise LegacyFileError(f"{of} are named by {type(name).__name__}s ({name!r}); name them by texts")
        if name not in entries:
            there = ", ".join(map(str, list(entries)[:_LISTED_MAX]))
            raise LegacyFileError(f"no entry {name!r} in {of}; there are {there}")
    return list(entries if names is None else names)


def _column_of_entry(value: Any, name: str, entry: str | None = None) -> Column:
    """An entry beside others: stacked samples, or a list of them."""
    entry = name if entry is None else entry
    if isinstance(value, list | tuple):
        if not value:
            raise LegacyFileError(f"field {name!r}: holds no samples")
        return _listed(value, None, name, entry)
    return _stacked(value, name, entry)


def _stacked(values: Any, name: str, entry: str) -> Stacked:
    form = form_of(values)
    if form is None or not form.shape:
        raise LegacyFileError(
            f"field {name!r}: {_described(values)} where samples along a first axis are needed; "
            "name the other fields: --fields"
        )
    return Stacked(values, Form(form.dtype, form.shape[1:]), entry)


def _listed(samples: Sequence[Any], key: Any, name: str, entry: str) -> Listed:
    """The column of one value a sample; all must have the first's form. Raises LegacyFileError."""
    common: Form | None = None
    for number, sample in enumerate(samples):
        value = sample if key is None else sample[key]
        form = form_of(value)
        if form is None:
            raise LegacyFileError(
                f"field {name!r}: sample {number} holds {_described(value)}, which cannot be stored; "
                f"{_advice(sample, key)}"
            )
        common = form if common is None else _common(common, form, name, number)
    assert common is not None  # there is a first sample
    return Listed(samples, key, common, entry)


def _advice(sample: Any, key: Any) -> str:
    """How to leave out what cannot be stored of ``sample``."""
    if isinstance(sample, Mapping):
        numeric = [str(name) for name, value in sample.items() if form_of(value) is not None]
        return f"name the others: --fields {','.join(numeric)}"
    if key is None:
        return "name the other fields: --fields"
    example = ",".join(LEFT_OUT if form_of(v) is None else f"name{i}" for i, v in enumerate(sample))
    return f"leave it out: --fields {example}"


def _common(common: Form, form: Form, name: str, number: int) -> Form:
    if form.shape != common.shape:
        raise LegacyFileError(
            f"field {name!r}: sample {number} has shape {list(form.shape)} where sample 0 has "
            f"{list(common.shape)}; ragged samples must be padded and their lengths kept as a field: "
            f"length = len({name}); "
            f"{name} = np.pad({name}, [(0, longest - length)] + [(0, 0)] * ({name}.ndim - 1))"
        )
    same = form.dtype.newbyteorder("=") == common.dtype.newbyteorder("=")
    if same and form.number == common.number:
        return common
    if form.number and common.number and "b" not in (form.dtype.kind, common.dtype.kind):
        return max(form, common, key=lambda one: "ifc".index(one.dtype.kind))
    raise LegacyFileError(
        f"field {name!r}: sample {number} is {_kind(form)} where sample 0 is {_kind(common)}; "
        "save all samples in one dtype"
    )


def _kind(form: Form) -> str:
    return f"a Python {form.dtype.name}" if form.number else form.dtype.name


def form_of(value: Any) -> Form | None:
    """The dtype and shape of an array, tensor or number; None for whatever cannot be stored."""
    if type(value) in _NUMBER_DTYPES:
        if type(value) is int and not -(2**63) <= value < 2**63:
            return None
        return Form(np.dtype(_NUMBER_DTYPES[type(value)]), (), number=True)
    if isinstance(value, np.ndarray | np.generic):
        return Form(value.dtype, value.shape) if value.dtype.name in DTYPES else None
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    name = "float32" if value.dtype == torch.bfloat16 else str(value.dtype).removeprefix("torch.")
    dense = value.layout == torch.strided and not (value.is_meta or value.is_quantized or value.is_nested)
    return Form(np.dtype(name), tuple(value.shape)) if dense and name in DTYPES else None


def _is_array(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def _described(value: Any) -> str:
    """A value in a few words, whatever it is."""
    if (form := form_of(value)) is not None:
        return str(form)
    if isinstance(value, Opaque):
        return value.words
    if isinstance(value, str):
        return "a text"
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes"
    if isinstance(value, Mapping | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int):
        return f"an integer of {value.bit_length()} bits"
    if hasattr(value, "layout"):
        return f"a tensor of {value.dtype} ({value.layout}, {value.device})"
    return "None" if value is None else f"a {type(value).__name__}"
