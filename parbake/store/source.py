"""Finds the source of the user's definitions and says what it refers to. Reads no values."""

from __future__ import annotations

import ast
import builtins
import copy
import functools
import linecache
import site
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parbake.errors import KeysError

_PACKAGE = Path(__file__).resolve().parents[1]
_MAIN = ("__main__", "__mp_main__")
_CODE_PARTS = (
    "co_name",
    "co_code",
    "co_names",
    "co_varnames",
    "co_freevars",
    "co_cellvars",
    "co_argcount",
    "co_kwonlyargcount",
)


# ---- whose code it is


@functools.cache
def _library_roots() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    roots = [sysconfig.get_paths()[name] for name in names]
    roots += [*site.getsitepackages(), site.getusersitepackages()]
    # of another environment, by PYTHONPATH or a .pth file
    roots += [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return tuple(Path(root).resolve() for root in roots)


def module_of(thing: Any) -> types.ModuleType | None:
    """The module that defines a function or class; a decorator may have given a function another's name."""
    if isinstance(thing, types.ModuleType):
        return thing
    name = thing.__globals__.get("__name__") if isinstance(thing, types.FunctionType) else thing.__module__
    return sys.modules.get(name or "")


def is_user_code(thing: Any) -> bool:
    """Whether a function, class or module is the user's: not parbake's, Python's or an installed one."""
    module = module_of(thing)
    if module is None or module.__name__ in _MAIN:
        return True
    origin = getattr(module, "__file__", None)
    if origin is not None:
        return not is_installed(origin)
    top = module.__name__.partition(".")[0]
    if module is builtins or top in sys.stdlib_module_names or hasattr(module, "__path__"):
        return False  # a package without a file holds no code
    return top == module.__name__ or top not in sys.modules or is_user_code(sys.modules[top])


def is_foreign(thing: Any) -> bool:
    """Whether the class of a producer or torch module needs its source as a key, though it be installed."""
    if is_user_code(thing):
        return True
    top = qualname(thing).partition(".")[0]
    return top not in (_PACKAGE.name, "torch", *sys.stdlib_module_names)


def is_installed(origin: str) -> bool:
    """Whether a module's file is parbake's, Python's or an installed package's."""
    return _is_within(origin, (_PACKAGE, *_library_roots()))


@functools.cache
def _is_within(origin: str, roots: tuple[Path, ...]) -> bool:
    file = Path(origin).resolve()
    return any(file.is_relative_to(root) for root in roots)


def module_name(module: types.ModuleType | None) -> str:
    """The name that a module has when it is imported, also where it is run as a script."""
    if module is None or module.__name__ not in _MAIN:
        return "(none)" if module is None else module.__name__
    if (spec := getattr(module, "__spec__", None)) is not None:  # python -m
        return str(spec.name)
    return Path(getattr(module, "__file__", None) or "__main__").stem


def qualname(thing: Any) -> str:
    """Dotted name of a module, function (as in its ``def``) or class."""
    if isinstance(thing, types.ModuleType):
        return module_name(thing)
    if isinstance(thing, types.FunctionType):
        return f"{module_name(module_of(thing))}.{thing.__code__.co_qualname}"
    module = module_of(thing)
    return f"{module_name(module) if module is not None else thing.__module__}.{thing.__qualname__}"


def library_name(value: Any) -> str | None:
    """The dotted name by which an installed library gives exactly this object, None where none does."""
    home = getattr(value, "__module__", None)
    module = sys.modules.get(home) if isinstance(home, str) else None
    if module is None or is_user_code(module):
        return None
    for attribute in ("__qualname__", "__name__"):
        name = getattr(value, attribute, None)
        found: Any = module
        for part in name.split(".") if isinstance(name, str) else ():
            found = getattr(found, part, None)
        if found is value:
            return f"{home}.{name}"
    return None


# ---- where it stands


def tree_of(thing: Any) -> ast.Module:
    """Syntax tree of a function, class or module, without docstrings.

    A function's source counts only where it compiles to the very code that runs: a file edited since it
    was imported must not pass for what computes the values. Raises KeysError.
    """
    if isinstance(thing, types.ModuleType):
        nodes = _parsed(_text(thing, getattr(thing, "__file__", None), vars(thing)))[0].body
    elif isinstance(thing, type):
        nodes = _class_nodes(thing)
    else:
        code = thing.__code__
        nodes = [_function_node(thing, _text(thing, code.co_filename, thing.__globals__))]
    return _without_docstrings(ast.Module(body=copy.deepcopy(nodes), type_ignores=[]))


def methods_of(cls: type) -> Iterator[tuple[str, types.FunctionType]]:
    """The functions in a class's own namespace by name, also behind properties and the like."""
    for name, value in vars(cls).items():
        parts = ("fget", "fset") if isinstance(value, property) else ("__func__", "func")
        for found in (value, *(getattr(value, part, None) for part in parts)):
            if isinstance(found, types.FunctionType):
                yield name, found


def is_own_method(cls: type, fn: types.FunctionType) -> bool:
    """Whether a function stands in the class's own source."""
    return fn.__code__.co_qualname.startswith(f"{cls.__qualname__}.")


def has_source(fn: types.FunctionType) -> bool:
    linecache.checkcache(fn.__code__.co_filename)
    return bool(linecache.getlines(fn.__code__.co_filename, fn.__globals__))


def _text(thing: Any, filename: str | None, scope: dict[str, Any]) -> str:
    if filename is not None:
        linecache.checkcache(filename)
    lines = linecache.getlines(filename, scope) if filename is not None else []
    text = "".join(lines)
    try:
        _parsed(text)
    except SyntaxError:
        lines = []
    if not lines:
        raise KeysError(
            f"{qualname(thing)}: its source cannot be read, so a change would go unseen; "
            "put it into a file, or pass invalidation_keys"
        )
    return text


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> tuple[ast.Module, tuple[types.CodeType, ...]]:
    """The tree of a file and the code of all its functions."""
    tree = ast.parse(text)
    return tree, tuple(_inner_codes(compile(text, "<source>", "exec", dont_inherit=True)))


@functools.lru_cache(maxsize=64)
def _compiled_apart(text: str) -> tuple[types.CodeType, ...]:
    """The code of all functions, compiled as notebooks do it: each statement of a cell for itself.

    It can differ from the other: Python compiles calls on modules that the same unit imports in another way.
    """
    apart = (ast.Module([statement], []) for statement in _parsed(text)[0].body)
    return tuple(
        code for unit in apart for code in _inner_codes(compile(unit, "<cell>", "exec", dont_inherit=True))
    )


def _inner_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _inner_codes(constant)


def _same_code(one: types.CodeType, other: types.CodeType) -> bool:
    """Whether two functions do the same, wherever they stand."""
    if any(getattr(one, part) != getattr(other, part) for part in _CODE_PARTS):
        return False
    pairs = zip(one.co_consts, other.co_consts, strict=False)
    return len(one.co_consts) == len(other.co_consts) and all(_same_constant(a, b) for a, b in pairs)


def _same_constant(one: object, other: object) -> bool:
    if isinstance(one, types.CodeType) and isinstance(other, types.CodeType):
        return _same_code(one, other)
    return type(one) is type(other) and (
        repr(one) == repr(other) or (isinstance(one, frozenset) and one == other)
    )


def _function_node(fn: types.FunctionType, text: str) -> ast.stmt:
    tree, codes = _parsed(text)
    running = fn.__code__
    same = [code for code in codes if _same_code(code, running)]
    same = same or [code for code in _compiled_apart(text) if _same_code(code, running)]
    if not same and _is_rewritten(module_of(fn)):
        same = [running]
    if not same:
        raise KeysError(
            f"{qualname(fn)}: its file no longer holds the code that runs; it was edited since the import: "
            "restart or reload"
        )
    code = min(same, key=lambda c: abs(c.co_firstlineno - running.co_firstlineno))
    kinds = (ast.Lambda,) if running.co_name == "<lambda>" else (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(tree) if isinstance(n, kinds) and _first_line(n) == code.co_firstlineno]
    nodes = [n for n in nodes if getattr(n, "name", "<lambda>") == running.co_name]
    if len(nodes) > 1:
        nodes = _at_positions(nodes, code)
    if not nodes:
        raise KeysError(
            f"{qualname(fn)}: which of several definitions in one line it is cannot be told; break the line"
        )
    node: Any = nodes[0]
    return node if isinstance(node, ast.stmt) else ast.Expr(value=node)


def _is_rewritten(module: types.ModuleType | None) -> bool:
    """Whether an import hook, such as pytest's for asserts, compiles another source than the file's."""
    loader = getattr(module, "__loader__", None)
    home = (type(loader) if not isinstance(loader, type) else loader).__module__
    return loader is not None and home.partition(".")[0] not in (
        "_frozen_importlib_external",
        *sys.stdlib_module_names,
    )


def _at_positions(nodes: list[Any], code: types.CodeType) -> list[Any]:
    """Of several lambdas in one line the one whose body the code was compiled from."""
    found = [p for p in code.co_positions() if None not in p and p[3] != p[2]]
    if not found:  # python -X no_debug_ranges
        return []
    start, stop = min((p[0], p[2]) for p in found), max((p[1], p[3]) for p in found)

    def within(node: Any) -> bool:
        body = node.body
        return bool(
            (body.lineno, body.col_offset) <= start and stop <= (body.end_lineno, body.end_col_offset)
        )

    return sorted(filter(within, nodes), key=lambda n: n.body.end_col_offset - n.body.col_offset)[:1]


def _class_nodes(cls: type) -> list[ast.stmt]:
    """The class statement; all of them where branches hold several of one name."""
    own = [fn for _, fn in methods_of(cls) if is_own_method(cls, fn) and has_source(fn)]
    module = module_of(cls)
    filename = own[0].__code__.co_filename if own else getattr(module, "__file__", None)
    text = _text(cls, filename, scope_of(cls))
    nodes = [node for name, node in _named_classes(_parsed(text)[0], "") if name == cls.__qualname__]
    if not nodes:
        raise KeysError(f"{qualname(cls)}: its class statement was not found in {filename}")
    for fn in own:
        if fn.__code__.co_filename == filename:
            _function_node(fn, text)  # raises where the file no longer holds what runs
    return nodes


def scope_of(thing: Any) -> dict[str, Any]:
    """The globals that a definition refers to."""
    if isinstance(thing, types.FunctionType):
        return thing.__globals__
    if isinstance(thing, type):
        for _, fn in methods_of(thing):
            if is_own_method(thing, fn) and fn.__globals__.get("__name__") == thing.__module__:
                return fn.__globals__
    module = module_of(thing)
    return vars(module) if module is not None else {}


def _named_classes(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.stmt]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield f"{prefix}{child.name}", child
            yield from _named_classes(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _named_classes(child, f"{prefix}{child.name}.<locals>.")
        else:
            yield from _named_classes(child, prefix)


def _first_line(node: Any) -> int:
    lines: list[int] = [d.lineno for d in getattr(node, "decorator_list", ())]
    return min(lines, default=int(node.lineno))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return tree
