"""Says what a definition's source refers to: names, attributes, modules. Reads no values."""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.util
import symtable
import sys
import types
from collections.abc import Iterator

from parbake.store.source import is_installed, is_user_code, tree_of

_MUTATORS = frozenset({"append", "add", "extend", "update", "insert", "put"})
_WRITE_MODES = frozenset(f"{mode}{kind}" for mode in "awx" for kind in ("", "b", "t"))


def _symbol_tables(tree: ast.AST) -> Iterator[symtable.SymbolTable]:
    """The symbol tables of a definition and of all scopes in it."""
    tables = [symtable.symtable(ast.unparse(tree), "<definition>", "exec")]
    while tables:
        table = tables.pop()
        yield table
        tables += table.get_children()


def global_names(tree: ast.AST) -> set[str]:
    """Names that a definition takes from its module: not those that its inner scopes bind."""
    return {
        symbol.get_name()
        for table in _symbol_tables(tree)
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module")
    }


def rebound_globals(tree: ast.AST) -> set[str]:
    """Global names that a definition gives values itself, as where it loads a model at its first call."""
    return {
        symbol.get_name()
        for table in _symbol_tables(tree)
        for symbol in table.get_symbols()
        if symbol.is_declared_global() and symbol.is_assigned()
    }


def assignments_of(module: types.ModuleType, name: str) -> ast.Module:
    """The statements of a module's own that give ``name`` a value. Raises KeysError."""

    def assigns(node: ast.stmt) -> bool:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        return any(isinstance(target, ast.Name) and target.id == name for target in targets)

    return ast.Module(body=[node for node in tree_of(module).body if assigns(node)], type_ignores=[])


def attribute_paths(tree: ast.AST, name: str) -> set[tuple[str, ...]]:
    """What is taken from ``name``: ("a", "b") for ``name.a.b``, () where it is used by itself."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    dotted = (_dotted(node) for node in ast.walk(tree) if id(node) not in inner)
    return {path[1:] for path in dotted if path and path[0] == name}


def _dotted(node: ast.AST) -> tuple[str, ...]:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else ()


def user_imports(tree: ast.AST, package: str | None) -> Iterator[tuple[types.ModuleType, str | None]]:
    """The user's modules that import statements within a definition name, and what of each (None: all)."""
    for node in ast.walk(tree):
        wanted: list[tuple[str, str | None]]
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = f"{'.' * node.level}{node.module or ''}"
            wanted = [(home, None if alias.name == "*" else alias.name) for alias in node.names]
        else:
            continue
        for name, attribute in wanted:
            module = _imported(name, package)
            if module is not None and (attribute is None or not hasattr(module, attribute)):
                module = _imported(f"{name}.{attribute}", package) if attribute else module
                attribute = None
            if module is not None:
                yield module, attribute


def _imported(name: str, package: str | None) -> types.ModuleType | None:
    """A module of the user's, imported if need be as the statement would; None for any other."""
    try:
        full = importlib.util.resolve_name(name, package) if name.startswith(".") else name
        top = full.partition(".")[0]
        spec = None if top in sys.modules else importlib.util.find_spec(top)
        if spec is not None and spec.origin is not None and is_installed(spec.origin):
            return None
        if (
            top in sys.modules
            and hasattr(sys.modules[top], "__file__")
            and not is_user_code(sys.modules[top])
        ):
            return None
        module = importlib.import_module(full)
    except ImportError:  # as where the statement itself allows for it
        return None
    return module if is_user_code(module) else None


def written_only(tree: ast.AST) -> set[str]:
    """Names that are only added to (a list of calls, a counter, a log file): not inputs.

    ``".calls"`` stands for an attribute of that name, whatever it belongs to.
    """
    writes = [name for node in ast.walk(tree) if (name := _written(node)) is not None]
    seen = [name for node in ast.walk(tree) if (name := _term(node)) is not None]
    return {name for name in set(writes) if seen.count(name) == writes.count(name)}


def without_lengths(tree: ast.Module) -> tuple[ast.Module, set[str]]:
    """A class less the defaults of fields that only its ``__len__`` reads, and the names of these.

    They say how many samples a producer has, which is no key. Where anything else in the class reads the
    field, or asks for its own length, the default stays.
    """
    tree = copy.deepcopy(tree)
    names = set[str]()
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            counting = [node for node in statement.body if getattr(node, "name", None) == "__len__"]
            others = [node for node in statement.body if node not in counting]
            elsewhere = {term for node in others for inner in ast.walk(node) if (term := _term(inner))}
            read = {node.attr for fn in counting for node in ast.walk(fn) if isinstance(node, ast.Attribute)}
            for node in others:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    name = node.target.id
                    if name in read and not {f".{name}", "len", "getattr", "vars"} & elsewhere:
                        node.value = None
                        names.add(name)
    return tree, names


def _term(node: ast.AST | None) -> str | None:
    if isinstance(node, ast.Attribute):
        return f".{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def _written(node: ast.AST) -> str | None:
    target: ast.expr | None = None
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        if isinstance(called, ast.Attribute) and called.attr in _MUTATORS:
            target = called.value
    elif isinstance(node, ast.AugAssign):
        target = node.target.value if isinstance(node.target, ast.Subscript) else node.target
    if target is None and isinstance(node, ast.Call):
        target = _opened_to_write(node)
    return _term(target)


def _opened_to_write(call: ast.Call) -> ast.expr | None:
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    if isinstance(call.func, ast.Name) and call.func.id == "open" and call.args:
        file, modes = call.args[0], [*call.args[1:2], *modes]
    elif isinstance(call.func, ast.Attribute) and call.func.attr == "open":
        file, modes = call.func.value, [*call.args[:1], *modes]
    else:
        return None
    writes = len(modes) == 1 and isinstance(modes[0], ast.Constant) and modes[0].value in _WRITE_MODES
    return file if writes else None
