"""Turns what a producer's values depend on into JSON: arrays, files, modules and callables by content."""

from __future__ import annotations

import ast
import enum
import functools
import hashlib
import math
import os
import sys
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parbake.errors import KeysError, StoreNotFoundError
from parbake.settings import cache_home
from parbake.store.source import global_names, is_builtin, is_user_code, qualname, tree_of, written_only

_MEMO_NBYTES = 8 * 1024**2  # smaller files are hashed faster than a memo is found
_MEMO_AGE_S = 2.0  # a file changed within the clock's grain of its hash may change again unseen
_TORCH_PRIVATE = frozenset({"_parameters", "_buffers", "_modules", "training"})


@dataclass
class Captured:
    """What a capture met on its way, beside the values themselves.

    ``source``: SHA-256 of each definition in user code, by qualified name. ``bound``: values and
    library names that those definitions refer to by a global name.
    """

    rehash: bool = False
    source: dict[str, str] = field(default_factory=dict)
    bound: dict[str, Any] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)
    _defined: dict[int, Any] = field(default_factory=dict)  # by id, and kept alive for it

    def add_definition(self, thing: Any) -> None:
        """Add the source of a user's function, class or module and of all that it refers to."""
        _add_definition(thing, self)


def capture(value: Any, captured: Captured, path: str = "") -> Any:
    """``value`` as JSON that differs whenever its content does.

    Arrays and tensors give {shape, dtype, sha256}; ``pathlib.Path`` the SHA-256 of the file; torch
    modules their tensors, buffers, mode, attributes and classes; callables and plain Python objects
    their qualified name, source (in ``captured``) and bound values. Raises KeysError with the path of
    anything whose content cannot be seen.
    """
    if type(value) is float and not math.isfinite(value):
        raise KeysError(f"{path or 'value'}: {value} cannot be an invalidation key; name it in words")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray):
        return _array(value, path)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, enum.Enum):
        return {"enum": qualname(type(value)), "name": value.name}
    if isinstance(value, Path):
        return {"sha256": file_sha256(value, rehash=captured.rehash)}
    if id(value) in captured._open:
        raise KeysError(f"{path or 'value'}: refers to itself")
    captured._open.add(id(value))
    try:
        return _composite(value, captured, path)
    finally:
        captured._open.discard(id(value))


def _composite(value: Any, captured: Captured, path: str) -> Any:
    if isinstance(value, Mapping):
        return {_key(k, path): capture(v, captured, _join(path, str(k))) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [capture(v, captured, f"{path}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, type):
        if is_user_code(value):
            captured.add_definition(value)
        return {"class": qualname(value)}
    if isinstance(value, functools.partial):
        parts = {"function": value.func, "args": value.args, "keywords": value.keywords}
        return capture(parts, captured, path)
    if isinstance(value, types.MethodType):
        return capture({"method": value.__func__, "self": value.__self__}, captured, path)
    if isinstance(value, types.FunctionType):
        return _function(value, captured, path)
    if isinstance(value, types.BuiltinFunctionType | np.ufunc):
        return {"function": f"{getattr(value, '__module__', None) or 'numpy'}.{value.__name__}"}
    if (torch := sys.modules.get("torch")) is not None:
        if isinstance(value, torch.Tensor):
            return _tensor(value, torch, path)
        if isinstance(value, torch.nn.Module):
            return _module(value, captured, path)
        if isinstance(value, torch.dtype | torch.device):
            return str(value)
    return _object(value, captured, path)


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise KeysError(f"{path or 'value'}: key {key!r} is not a string")
    return key


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _array(value: np.ndarray[Any, Any], path: str) -> dict[str, Any]:
    if value.dtype.hasobject:
        raise KeysError(f"{path or 'value'}: an array of dtype {value.dtype} has no stable bytes")
    content = np.ascontiguousarray(value).reshape(-1)
    return {
        "shape": list(value.shape),
        "dtype": value.dtype.str,
        "sha256": hashlib.sha256(content.view(np.uint8).data).hexdigest(),
    }


def _tensor(value: Any, torch: Any, path: str) -> dict[str, Any]:
    if value.is_sparse or value.is_quantized:
        raise KeysError(f"{path or 'value'}: sparse and quantized tensors cannot enter the keys")
    plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(plain).hexdigest()
    return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}


def _module(module: Any, captured: Captured, path: str) -> dict[str, Any]:
    cls = type(module)
    foreign = not cls.__module__.startswith("torch.")
    if is_user_code(cls):
        captured.add_definition(cls)
    attributes = {
        name: capture(item, captured, _join(path, name))
        for name, item in vars(module).items()
        if name not in _TORCH_PRIVATE and (foreign or not name.startswith("_")) and not _torch_book(name)
    }
    hooks = {
        name: list(item.values()) for name, item in vars(module).items() if name.endswith("_hooks") and item
    }
    return {
        "class": qualname(cls),
        "training": module.training,
        "attributes": attributes,
        "hooks": capture(hooks, captured, _join(path, "hooks")),
        "parameters": capture(dict(module._parameters), captured, path),
        "buffers": capture(dict(module._buffers), captured, path),
        "modules": {
            name: capture(child, captured, _join(path, name)) for name, child in module._modules.items()
        },
    }


def _torch_book(name: str) -> bool:
    """Book-keeping that every torch module has and that changes no output by itself."""
    return name.startswith("_") and (
        "hook" in name or name in {"_non_persistent_buffers_set", "_is_full_backward_hook"}
    )


def _object(value: Any, captured: Captured, path: str) -> dict[str, Any]:
    cls = type(value)
    if cls is object or not all(_python_defined(base) for base in cls.__mro__ if base is not object):
        raise KeysError(
            f"{path or 'value'}: {qualname(cls)} cannot enter the keys, its content is not visible; "
            "pass what it depends on as keys"
        )
    if is_user_code(cls):
        captured.add_definition(cls)
    state = dict(getattr(value, "__dict__", {}))
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                state[name] = getattr(value, name)
    return {"class": qualname(cls), "attributes": capture(state, captured, path)}


def _python_defined(cls: type) -> bool:
    """Whether instances keep all their state in ``__dict__`` or slots (false for C extensions)."""
    module = sys.modules.get(cls.__module__)
    if cls.__module__ == "__main__":
        return True
    return (getattr(module, "__file__", None) or "").endswith(".py")


def _function(fn: types.FunctionType, captured: Captured, path: str) -> dict[str, Any]:
    if is_user_code(fn):
        captured.add_definition(fn)
    unread = written_only(tree_of(fn)) if is_user_code(fn) else set()
    cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
    bound: dict[str, Any] = {
        name: cell.cell_contents for name, cell in cells if name not in unread and _filled(cell)
    }
    if fn.__defaults__ or fn.__kwdefaults__:
        names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
        defaults = fn.__defaults__ or ()
        bound |= dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
        bound |= fn.__kwdefaults__ or {}
    bound = {k: v for k, v in bound.items() if id(v) not in captured._open and v is not fn}
    name = qualname(fn)
    return {"function": name, "bound": capture(bound, captured, path)} if bound else {"function": name}


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


# ---- files


def file_sha256(path: Path, *, rehash: bool = False) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; remembered for large files.

    A remembered hash counts for the same device, inode, size and both change times only, and is kept
    only for files that had not changed for two seconds. Raises StoreNotFoundError.
    """
    try:
        before = os.stat(path)
        memo = _memo_path(before)
        if not rehash and before.st_size >= _MEMO_NBYTES and memo.exists():
            return memo.read_text()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise StoreNotFoundError(f"{path}: no such file, and its content is an invalidation key") from None
    except IsADirectoryError:
        raise KeysError(f"{path} is a folder; name the files that matter") from None
    quiet = time.time() - max(before.st_mtime, before.st_ctime) > _MEMO_AGE_S
    if before.st_size >= _MEMO_NBYTES and quiet and _memo_path(os.stat(path)) == memo:
        _remember(memo, digest)
    return digest


def _memo_path(stat: os.stat_result) -> Path:
    parts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return cache_home() / "file-hashes" / "-".join(map(str, parts))


def _remember(memo: Path, digest: str) -> None:
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        temporary = memo.with_name(f"{memo.name}.{os.getpid()}")
        temporary.write_text(digest)
        temporary.rename(memo)
    except OSError:  # a read-only cache folder costs time, not correctness
        return


# ---- definitions


def _add_definition(thing: Any, captured: Captured) -> None:
    if id(thing) in captured._defined:
        return
    captured._defined[id(thing)] = thing
    tree = tree_of(thing)
    text = hashlib.sha256(ast.unparse(tree).encode()).hexdigest()
    name = thing.__name__ if isinstance(thing, types.ModuleType) else qualname(thing)
    same = [other for other in captured.source if other.split("#")[0] == name]  # two lambdas, say
    if text not in (captured.source[other] for other in same):
        captured.source[f"{name}#{len(same) + 1}" if same else name] = text
    for base in thing.__mro__[1:] if isinstance(thing, type) else ():
        if base is not object and is_user_code(base):
            _add_definition(base, captured)
    module = thing if isinstance(thing, types.ModuleType) else sys.modules.get(thing.__module__)
    scope = getattr(thing, "__globals__", None) or vars(module)
    bound = getattr(getattr(thing, "__code__", None), "co_freevars", ())  # captured by value
    for used in sorted(global_names(tree) - written_only(tree) - set(bound)):
        if used in scope and scope[used] is not thing:
            _add_global(f"{name.split('.')[0]}.{used}", scope[used], thing, module, captured)


def _add_global(name: str, value: Any, user: Any, module: Any, captured: Captured) -> None:
    """One global name that the definition ``user`` in user code refers to."""
    if isinstance(value, types.FunctionType | type | types.ModuleType):
        if is_user_code(value):
            _add_definition(value, captured)
        elif not is_builtin(value):
            captured.bound[name] = value.__name__ if isinstance(value, types.ModuleType) else qualname(value)
        return
    if isinstance(user, types.ModuleType) or id(value) in captured._open or name in captured.bound:
        return  # a module's own code is what its values are built by
    try:
        captured.bound[name] = capture(value, captured, name)
    except (KeysError, StoreNotFoundError):  # what the module's own code built is told by that code
        if module is not None:
            _add_definition(module, captured)
