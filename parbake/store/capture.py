"""Turns what a producer's values depend on into JSON: arrays, files, modules and callables by content."""

from __future__ import annotations

import ast
import contextlib
import enum
import functools
import hashlib
import logging
import math
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parbake.errors import KeysError, StoreNotFoundError
from parbake.store import references
from parbake.store import source as found_source
from parbake.store.files import file_sha256
from parbake.store.references import written_only
from parbake.store.source import is_foreign, is_user_code, library_name, qualname, tree_of

_TORCH_APART = frozenset({"_parameters", "_buffers", "_modules", "training"})  # captured by name of their own
_TORCH_BOOKS = frozenset(
    {  # change no output by themselves, or repeat the parameters
        "_non_persistent_buffers_set",
        "_is_full_backward_hook",
        "_flat_weights",
        "_flat_weight_refs",
        "_compiled_call_impl",
    }
)
_LITERALS = (bytes, complex, range, slice, types.EllipsisType, float)  # of which repr() says all
_MAPPINGS = (dict, types.MappingProxyType)

# How much is let through: what the user declares is JSON; inside code any plain value is told by its
# repr; a global that nothing can see into is told by the source of the module that made it.
_DECLARED, _IN_CODE, _GLOBAL = range(3)


@dataclass
class Captured:
    """What a capture met on its way, beside the values themselves.

    ``source``: SHA-256 of each definition in user code, by qualified name. ``bound``: values and names
    that those definitions refer to by a global name.
    """

    rehash: bool = False
    source: dict[str, str] = field(default_factory=dict)
    bound: dict[str, Any] = field(default_factory=dict)
    _producer: type | None = None
    _open: dict[int, int] = field(default_factory=dict)  # depth by id, of what is being captured
    _defined: dict[int, Any] = field(default_factory=dict)  # by id, and kept alive for it
    _level: int = _DECLARED
    _opaque: bool = False  # whether the global being captured holds what nothing can see into

    def add_definition(self, thing: Any) -> None:
        """Add the source of a user's function, class or module and of all that it refers to."""
        with self._at(_IN_CODE):
            _add_definition(thing, self)

    def add_producer(self, cls: type) -> None:
        """Add the definition of a producer's class, less what only counts its samples."""
        self._producer = cls
        self.add_definition(cls)

    @contextlib.contextmanager
    def _at(self, level: int) -> Iterator[None]:
        before, self._level = self._level, max(level, self._level)
        try:
            yield
        finally:
            self._level = before


def capture(value: Any, captured: Captured, path: str = "") -> Any:
    """``value`` as JSON that differs whenever its content does.

    Arrays and tensors give {shape, dtype, sha256}; ``pathlib.Path`` the SHA-256 of the file; torch
    modules their tensors, buffers, mode, attributes and classes; callables and plain Python objects
    their qualified name, source (in ``captured``) and bound values. Raises KeysError with the path of
    anything whose content cannot be seen.
    """
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, np.ndarray):
        return _array(value, path)
    if isinstance(value, np.generic):
        return (
            capture(value.item(), captured, path) if not isinstance(value.item(), np.generic) else str(value)
        )
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, Path):
        return _file(value, captured)
    if isinstance(value, _LITERALS) and type(value) in _LITERALS:
        if captured._level == _DECLARED:
            kind = value if isinstance(value, float) else type(value).__name__
            raise KeysError(f"{path or 'value'}: {kind} cannot be an invalidation key; name it in words")
        return {type(value).__name__: repr(value)}
    if id(value) in captured._open:
        if isinstance(value, dict | list | tuple):
            raise KeysError(f"{path or 'value'}: refers to itself")
        return {"above": len(captured._open) - captured._open[id(value)]}
    captured._open[id(value)] = len(captured._open)
    try:
        return _composite(value, captured, path)
    finally:
        del captured._open[id(value)]


def _composite(value: Any, captured: Captured, path: str) -> Any:
    if type(value) in _MAPPINGS and all(isinstance(key, str) for key in value):
        return {key: capture(item, captured, _join(path, key)) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [capture(item, captured, f"{path}[{i}]") for i, item in enumerate(value)]
    if captured._level == _DECLARED and isinstance(value, Mapping):
        bad = next((key for key in value if not isinstance(key, str)), None)
        if bad is not None:
            raise KeysError(f"{path or 'value'}: key {bad!r} is not a string")
    if isinstance(value, dict | list | tuple | set | frozenset | Mapping) and (
        captured._level > _DECLARED or not isinstance(value, set | frozenset)
    ):
        return _container(value, captured, path)
    if callable(told := getattr(type(value), "invalidation_key", None)):  # it knows its content itself
        return capture(told(value, rehash=captured.rehash), captured, path)
    if isinstance(value, enum.Enum):
        _add_class(type(value), captured)
        return {
            "enum": qualname(type(value)),
            "name": value.name,
            "value": capture(value.value, captured, path),
        }
    with captured._at(_IN_CODE):
        if isinstance(value, type | types.ModuleType):
            _add_class(value, captured)
            return {"class" if isinstance(value, type) else "module": qualname(value)}
        if callable(value) and (name := library_name(value)) is not None:
            return {"function": name}
        if isinstance(value, types.FunctionType):
            return _function(value, captured, path)
        if isinstance(value, functools.partial):
            parts = {"function": value.func, "args": value.args, "keywords": value.keywords}
            return {"partial": capture(parts, captured, path)}
        if isinstance(value, types.MethodType):
            return capture({"method": value.__func__, "self": value.__self__}, captured, path)
        if isinstance(value, types.BuiltinMethodType | types.MethodWrapperType):
            return {"method": value.__qualname__, "self": capture(value.__self__, captured, path)}
        if (wrapped := getattr(value, "__wrapped__", None)) is not None and not _visible(type(value)):
            return {"class": qualname(type(value)), "wrapped": capture(wrapped, captured, path)}
        if isinstance(value, logging.Logger):  # gives no values, and holds all other loggers
            return {"class": qualname(type(value)), "name": value.name}
        if isinstance(value, np.ufunc) and value.types != ["O->O"]:
            return {"function": f"ufunc {value.__name__}"}
        if (torch := sys.modules.get("torch")) is not None:
            if isinstance(value, torch.Tensor):
                return _tensor(value, torch, path)
            if isinstance(value, torch.nn.Module):
                return _module(value, captured, path)
            if isinstance(value, torch.dtype | torch.device):
                return str(value)
        return _object(value, captured, path)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _container(value: Any, captured: Captured, path: str) -> dict[str, Any]:
    """A set, a mapping with keys of any kind, or a container of a class of its own."""
    cls = type(value)
    with captured._at(_IN_CODE):
        _add_class(cls, captured)
        content: Any
        if isinstance(value, Mapping):
            content = [[capture(k, captured, path), capture(v, captured, path)] for k, v in value.items()]
            content = sorted(content, key=repr) if isinstance(value, dict) else content
        else:
            content = [capture(item, captured, path) for item in value]
            content = sorted(content, key=repr) if isinstance(value, set | frozenset) else content
        attributes = dict(getattr(value, "__dict__", {}))
        extra = {"default": value.default_factory} if hasattr(value, "default_factory") else {}
        return {"class": qualname(cls), "items": content} | {
            name: capture(item, captured, path)
            for name, item in {"attributes": attributes, **extra}.items()
            if item
        }


# ---- arrays and tensors


def _array(value: np.ndarray[Any, Any], path: str) -> dict[str, Any]:
    if value.dtype.hasobject:
        raise KeysError(f"{path or 'value'}: an array of dtype {value.dtype} has no stable bytes")
    if type(value) not in (np.ndarray, np.memmap):
        raise KeysError(
            f"{path or 'value'}: {type(value).__name__} is more than its numbers; pass plain arrays"
        )
    content = np.ascontiguousarray(value).reshape(-1)
    dtype = value.dtype.str if value.dtype.names is None else str(value.dtype.descr)
    digest = hashlib.sha256(content.view(np.uint8).data).hexdigest()
    return {"shape": list(value.shape), "dtype": dtype, "sha256": digest}


def _tensor(value: Any, torch: Any, path: str) -> dict[str, Any]:
    try:
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise NotImplementedError
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest = hashlib.sha256(plain.view(torch.uint8).numpy()).hexdigest()
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        raise KeysError(
            f"{path or 'value'}: a tensor that is sparse, quantized, nested or on 'meta' has no plain bytes"
        ) from None


# ---- objects


def _module(module: Any, captured: Captured, path: str) -> Any:
    if type(module).__module__.startswith("torch.jit"):
        raise KeysError(
            f"{path or 'value'}: the code of a TorchScript module is not visible; pass its file as Path"
        )
    if type(module).__module__.startswith("torch._dynamo") and "_orig_mod" in module._modules:
        return capture(module._orig_mod, captured, path)  # torch.compile
    for base in type(module).__mro__:
        _add_class(base, captured, foreign=True)
    state = {
        name: item
        for name, item in vars(module).items()
        if name not in _TORCH_APART | _TORCH_BOOKS and "_hooks" not in name and name != "_graph"
    }
    hooks = {
        name: list(item.values())
        for name, item in vars(module).items()
        if name.endswith("_hooks") and "state_dict" not in name and item
    }
    if "_graph" in vars(module):  # torch.fx
        state["code"] = module.code
    return {
        "class": qualname(type(module)),
        "training": module.training,
        "attributes": capture(state, captured, path),
        "hooks": capture(hooks, captured, _join(path, "hooks")),
        "parameters": capture(dict(module._parameters), captured, path),
        "buffers": capture(dict(module._buffers), captured, path),
        "modules": capture(dict(module._modules), captured, path),
    }


def _object(value: Any, captured: Captured, path: str) -> dict[str, Any]:
    cls = type(value)
    if cls is object or not _visible(cls):
        return _unseen(cls, captured, path)
    _add_class(cls, captured)
    state = dict(getattr(value, "__dict__", {}))
    for base in cls.__mro__:
        for name in _slots(base):
            if hasattr(value, name):
                state[name] = getattr(value, name)
    return {"class": qualname(cls), "attributes": capture(state, captured, path)}


def _unseen(cls: type, captured: Captured, path: str) -> dict[str, Any]:
    if captured._level < _GLOBAL:
        raise KeysError(
            f"{path or 'value'}: {qualname(cls)} cannot enter the keys, its content is not visible; "
            "pass what it depends on as keys"
        )
    captured._opaque = True
    return {"class": qualname(cls)}


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    private = f"_{cls.__name__.lstrip('_')}"
    mangled = (f"{private}{n}" if n.startswith("__") and not n.endswith("__") else n for n in names)
    return tuple(name for name in mangled if name not in ("__dict__", "__weakref__"))


def _visible(cls: type) -> bool:
    """Whether instances keep all their state in ``__dict__`` and slots: no room for any in C."""
    slots = [f"s{i}" for i in range(sum(len(_slots(base)) for base in cls.__mro__))]
    slots += ["__dict__"] * bool(cls.__dictoffset__) + ["__weakref__"] * bool(cls.__weakrefoffset__)
    probe = type("probe", (), {"__slots__": slots})
    return cls.__itemsize__ == 0 and cls.__basicsize__ <= probe.__basicsize__


def _file(path: Path, captured: Captured) -> dict[str, Any]:
    try:
        return {"sha256": file_sha256(path, rehash=captured.rehash)}
    except (KeysError, StoreNotFoundError):
        if captured._level < _GLOBAL:
            raise
        captured._opaque = True  # a folder, or a file that is yet to be written
        return {"class": "pathlib.Path"}


# ---- functions and definitions


def _function(fn: types.FunctionType, captured: Captured, path: str) -> dict[str, Any]:
    if is_user_code(fn):
        _add_definition(fn, captured)
    bound = _bound(fn, captured)
    name = qualname(fn)
    return {"function": name, "bound": capture(bound, captured, path)} if bound else {"function": name}


def _bound(fn: types.FunctionType, captured: Captured) -> dict[str, Any]:
    """Values that a function carries: of its closure, defaults and attributes. Follows modules in it."""
    user = is_user_code(fn)
    tree = tree_of(fn) if user else ast.Module(body=[], type_ignores=[])
    unread = written_only(tree)
    cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
    bound: dict[str, Any] = {name: cell.cell_contents for name, cell in cells if _filled(cell)}
    bound = {name: value for name, value in bound.items() if name not in unread and name != "__class__"}
    for name, value in bound.items():
        if isinstance(value, types.ModuleType):
            _follow(name, value, tree, qualname(fn), captured)
    names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    defaults = fn.__defaults__ or ()
    bound |= dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    bound |= fn.__kwdefaults__ or {}
    own = {k: v for k, v in vars(fn).items() if k != "__wrapped__" and f".{k}" not in unread} if user else {}
    return {**bound, **{f".{name}": value for name, value in own.items()}}


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _add_class(thing: Any, captured: Captured, *, foreign: bool = False) -> None:
    """Add a class or module that is the user's; with ``foreign`` also one that is installed."""
    if is_foreign(thing) if foreign else is_user_code(thing):
        captured.add_definition(thing)


def _add_definition(thing: Any, captured: Captured) -> None:
    if id(thing) in captured._defined:
        return
    captured._defined[id(thing)] = thing
    try:
        tree = tree_of(thing)
    except KeysError:
        module = found_source.module_of(thing)
        if not isinstance(thing, type) or module is None:
            raise
        _add_definition(module, captured)  # made by a call, as of namedtuple(), somewhere in it
        tree = ast.Module(body=[], type_ignores=[])
    name = qualname(thing)
    counts = set[str]()
    if thing is captured._producer:
        tree, counts = references.without_lengths(tree)
    if tree.body:
        _add_source(name, tree, captured)
    if isinstance(thing, type):
        _add_class_parts(thing, tree, captured, counts)
    module = found_source.module_of(thing)
    for used, attribute in references.user_imports(tree, getattr(module, "__package__", None)):
        if attribute is None:
            _add_definition(used, captured)
        else:
            _add_global(f"{qualname(used)}.{attribute}", getattr(used, attribute), used, captured)
    if isinstance(thing, types.ModuleType):
        return
    scope = found_source.scope_of(thing)
    bound = getattr(getattr(thing, "__code__", None), "co_freevars", ())  # captured by value
    rebound = references.rebound_globals(tree)  # state of the definition's own: told by what makes it
    if module is not None:
        for state in sorted(rebound - written_only(tree)):
            made = references.assignments_of(module, state)
            _add_source(f"{found_source.module_name(module)}.{state}", made, captured)
    for used_name in sorted(references.global_names(tree) - written_only(tree) - rebound - set(bound)):
        if used_name in scope and scope[used_name] is not thing:
            _follow(used_name, scope[used_name], tree, found_source.module_name(module), captured, module)


def _add_source(name: str, tree: ast.Module, captured: Captured) -> None:
    text = hashlib.sha256(ast.unparse(tree).encode()).hexdigest()
    same = [other for other in captured.source if other.split("#")[0] == name]  # two lambdas, say
    if text not in (captured.source[other] for other in same):
        captured.source[f"{name}#{len(same) + 1}" if same else name] = text


def _add_class_parts(cls: type, tree: ast.Module, captured: Captured, counts: set[str]) -> None:
    """What the statement of a class does not show: bases, closures, and attributes set at run time.

    ``counts``: attributes that only say how many samples there are.
    """
    for base in cls.__mro__[1:]:
        _add_class(base, captured, foreign=not is_user_code(cls))
    name, unread = qualname(cls), written_only(tree) | {f".{count}" for count in counts}
    for attribute, fn in found_source.methods_of(cls):
        dunder = attribute.startswith("__") and attribute != "__call__"
        if not is_user_code(fn) or (dunder and not found_source.has_source(fn)):
            continue  # made by dataclass and the like out of what the class shows
        if not found_source.is_own_method(cls, fn):
            _add_global(f"{name}.{attribute}", fn, None, captured)
        elif bound := _bound(fn, captured):
            _add_global(f"{name}.{attribute}()", bound, None, captured)
    for attribute, value in vars(cls).items():
        data = not hasattr(type(value), "__get__") and not attribute.startswith(("__", "_abc_"))
        if data and f".{attribute}" not in unread and not issubclass(cls, enum.Enum):
            _add_global(f"{name}.{attribute}", value, None, captured)


def _follow(
    name: str,
    value: Any,
    tree: ast.AST,
    home: str,
    captured: Captured,
    module: types.ModuleType | None = None,
) -> None:
    """One name that a definition refers to; of a module only what is taken from it."""
    if not isinstance(value, types.ModuleType) or not is_user_code(value):
        _add_global(f"{home}.{name}", value, module, captured)
        return
    captured.bound[f"{home}.{name}"] = {"module": qualname(value)}
    for path in sorted(references.attribute_paths(tree, name)):
        owner, rest = value, path
        while rest and isinstance(inner := getattr(owner, rest[0], None), types.ModuleType):
            owner, rest = inner, rest[1:]
        if not is_user_code(owner):
            continue
        if rest and hasattr(owner, rest[0]):
            _add_global(f"{qualname(owner)}.{rest[0]}", getattr(owner, rest[0]), owner, captured)
        else:
            _add_definition(owner, captured)


def _add_global(name: str, value: Any, module: types.ModuleType | None, captured: Captured) -> None:
    """One value that user code refers to by name; ``module`` made it, where a module did."""
    if name in captured.bound:
        return
    captured.bound[name] = None  # a name that is being captured refers to itself
    opaque, captured._opaque = captured._opaque, False
    try:
        with captured._at(_GLOBAL):
            found = capture(value, captured, name)
        if captured._opaque and module is not None and is_user_code(module):
            _add_definition(module, captured)  # what its code built is told by that code
    finally:
        captured._opaque = opaque
    if found in ({"function": name}, {"class": name}):
        del captured.bound[name]
    else:
        captured.bound[name] = found
