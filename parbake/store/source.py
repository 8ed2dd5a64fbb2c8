"""Finds the source of the user's definitions and says what a change of it would be. Reads no values."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import site
import symtable
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parbake.errors import KeysError

_PACKAGE = Path(__file__).resolve().parents[1]
_MUTATORS = frozenset("append add extend update insert put".split())


@functools.cache
def _library_roots() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    roots = [sysconfig.get_paths()[name] for name in names]
    roots += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(Path(root).resolve() for root in roots)


def is_user_code(thing: Any) -> bool:
    """Whether a function, class or module is the user's: not parbake's, Python's or an installed one."""
    module = thing if isinstance(thing, types.ModuleType) else sys.modules.get(thing.__module__ or "")
    if module is None or module is builtins:
        return module is None
    if module.__name__ == "__main__":
        return True
    origin = getattr(module, "__file__", None)
    if origin is None:
        return False
    file = Path(origin).resolve()
    return not any(file.is_relative_to(root) for root in (_PACKAGE, *_library_roots()))


def is_builtin(value: Any) -> bool:
    return getattr(value, "__module__", None) in ("builtins", "typing", "__future__")


def qualname(thing: Any) -> str:
    module = thing.__module__
    if module == "__main__":  # the same script has the same keys when it is imported instead
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").stem
    return f"{module}.{thing.__qualname__}"


def tree_of(thing: Any) -> ast.AST:
    """Syntax tree of a function, class or module, without docstrings; raises KeysError."""
    try:
        if isinstance(thing, types.ModuleType):
            return _without_docstrings(ast.parse(inspect.getsource(thing)))
        lines, first = inspect.findsource(thing)
        tree = ast.parse("".join(lines))
    except (OSError, TypeError, SyntaxError):
        raise KeysError(
            f"{qualname(thing)}: its source cannot be read, so a change would go unseen; "
            "put it into a file, or pass keys"
        ) from None
    found = [node for node in _definitions(tree) if _first_line(node) == first + 1 and _is_like(node, thing)]
    if not found:
        raise KeysError(f"{qualname(thing)}: its source was not found at line {first + 1}; pass keys")
    return _without_docstrings(ast.Module(body=found, type_ignores=[]))


def _definitions(tree: ast.AST) -> Iterator[Any]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    return (node for node in ast.walk(tree) if isinstance(node, kinds))


def _first_line(node: Any) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def _is_like(node: Any, thing: Any) -> bool:
    name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
    return bool(name == thing.__name__) and isinstance(node, ast.ClassDef) == isinstance(thing, type)


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            constant = body[0].value
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


def global_names(tree: ast.AST) -> set[str]:
    """Names that a definition takes from its module: not those that it or its inner scopes bind."""
    found: set[str] = set()
    tables = [symtable.symtable(ast.unparse(tree), "<definition>", "exec")]
    while tables:
        table = tables.pop()
        top = table.get_type() == "module"
        found |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (symbol.is_global() or (top and not symbol.is_assigned()))
        }
        tables += table.get_children()
    return found


def written_only(tree: ast.AST) -> set[str]:
    """Names that are only added to (a list of calls, a counter, a log file): not inputs."""
    writes = [name for node in ast.walk(tree) if (name := _written(node)) is not None]
    seen = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {name for name in set(writes) if seen.count(name) == writes.count(name)}


def _written(node: ast.AST) -> str | None:
    target: ast.expr | None = None
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        if isinstance(called, ast.Attribute) and called.attr in _MUTATORS:
            target = called.value
    elif isinstance(node, ast.AugAssign):
        target = node.target.value if isinstance(node.target, ast.Subscript) else node.target
    elif isinstance(node, ast.Call):
        target = _opened_to_write(node)
    return target.id if isinstance(target, ast.Name) else None


def _opened_to_write(call: ast.Call) -> ast.expr | None:
    if isinstance(call.func, ast.Name) and call.func.id == "open" and len(call.args) > 1:
        file, mode = call.args[0], call.args[1]
    elif isinstance(call.func, ast.Attribute) and call.func.attr == "open" and call.args:
        file, mode = call.func.value, call.args[0]
    else:
        return None
    writes = isinstance(mode, ast.Constant) and str(mode.value)[:1] in ("a", "w", "x")
    return file if writes else None
