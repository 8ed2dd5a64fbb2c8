"""Which module may import which (the design's rooms), who prints, who reads the environment."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import parbake

PACKAGE = Path(parbake.__file__).parent

# Within the store a module imports from lines above its own only, so that there is no way round.
STORE = """
source files durable layout statistics
codecs references
capture
chunkmap keys index gather threads
shard decoded opened zip_index
zip_writer
document hdf5_index hdf5_form hdf5_blocks
zarr_format
chunks contents
reader
zarr_zip samples
zarr_dir
hdf5 hdf5_write foreign
containers
writer publish verify differences
store
pack
cache concatenated
clear
"""
# The same within the room of files that others wrote.
FOREIGN = """
steps
codecs arrays
maps zarr_fetch zarr_nodes hdf5_tree
zarr hdf5
"""
LEVEL = {
    name: (above, within)
    for above, line in enumerate(STORE.strip().splitlines())
    for top in line.split()
    for within, names in enumerate(FOREIGN.strip().splitlines() if top == "foreign" else ("",))
    for name in [f"foreign.{inner}" for inner in names.split()] or [top]
}
CONTAINERS = {"zarr_dir", "zarr_zip", "hdf5", "hdf5_write", "foreign"}


# What each room may import; "cli" stands for all cli modules.
ROOMS = {
    "errors": set[str](),
    "settings": {"errors"},
    "human": {"errors"},
    "store": {"errors", "settings", "store"},
    "browse": {"errors", "settings", "human", "store", "browse"},
    "producers": {"errors", "settings", "store", "producers"},
    "loaders": {"errors", "settings", "human", "store", "loaders"},
    "progress": {"errors", "settings", "human", "store"},
    "cli": {"errors", "settings", "human", "store", "browse", "producers", "loaders", "progress", "cli"},
    "__main__": {"cli"},
    "__init__": set[str](),
}
ALLOWED = {
    ("parbake.producers.bake", "parbake.progress"),  # the bar, where nobody said how to report
    ("parbake.cli", "parbake"),  # its version
}
# A store and a dataset are shown on demand: their rooms import the one that shows, within functions.
SHOWN_BY = "browse"
SHOWN = {"store", "loaders"}
HEAVY = {"torch", "zarr", "numcodecs", "h5py", "scipy", "xarray", "matplotlib", "pydantic", "rich", "ruamel"}
# A class for xarray derives from xarray's; who imports these wants xarray, and does so within a function.
DERIVED = {("parbake.browse.xarrays", "xarray"), ("parbake.browse.engine", "xarray")}
PRINTS = {"cli", "progress"}
ENVIRONMENT = {"parbake.settings": 99, "parbake.producers.executors": 1}  # the threads of a worker


@dataclass(frozen=True)
class Import:
    """One import; ``lazy``: within a function; ``typing``: under TYPE_CHECKING."""

    module: str
    target: str
    lazy: bool
    typing: bool


def module_of(file: Path, package: Path = PACKAGE) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(package: Path = PACKAGE) -> dict[str, ast.Module]:
    return {module_of(file, package): ast.parse(file.read_text()) for file in sorted(package.rglob("*.py"))}


SOURCES = sources()


def imports(module: str, tree: ast.Module) -> Iterator[Import]:
    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for inner in child.body:
                    yield from walk(ast.Module([inner], []), lazy, True)
                for inner in child.orelse:
                    yield from walk(ast.Module([inner], []), lazy, typing)
            elif isinstance(child, ast.Import):
                yield from (Import(module, alias.name, lazy, typing) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from (Import(module, target, lazy, typing) for target in targets(child))
            else:
                within = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, lazy or within, typing)

    def targets(found: ast.ImportFrom) -> list[str]:
        if found.level:
            return ["." * found.level + (found.module or "")]
        assert found.module is not None
        full = [f"{found.module}.{alias.name}" for alias in found.names]
        return [name if name in SOURCES else found.module for name in full]

    yield from walk(tree, False, False)


def room(module: str) -> str:
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else "__init__"
    return "cli" if name.startswith("cli") else name


def wrong_arrows(found: Import) -> Iterator[str]:
    """What is wrong with an import of another of our modules."""
    arrow = f"{found.module} -> {found.target}"
    if found.target.startswith("."):
        yield f"{arrow}: relative"
    if found.target.split(".")[0] != "parbake" or (found.module, found.target) in ALLOWED:
        return
    if found.target == "parbake":
        yield f"{arrow}: a submodule imports the face"
        return
    if found.typing:
        return  # a name for the type checker makes no arrow at run time
    source, target = room(found.module), room(found.target)
    if source in SHOWN and target == SHOWN_BY and found.lazy:
        return
    if source not in ROOMS:
        yield f"{found.module}: give this room its arrows here"
    elif target not in ROOMS[source]:
        yield f"{arrow}: {source} may import {sorted(ROOMS[source])}"
    if source == target == "store" and found.module.count(".") > 1:
        one, other = (name.removeprefix("parbake.store.") for name in (found.module, found.target))
        if one not in LEVEL or other not in LEVEL:
            yield f"{arrow}: give both a line in STORE here"
        elif one == "reader" and other.split(".")[0] in CONTAINERS:
            yield f"{arrow}: the reader knows no container"
        elif LEVEL[other] >= LEVEL[one]:
            yield f"{arrow}: not a line above"


def wrong_weight(found: Import) -> Iterator[str]:
    """What is wrong with an import of somebody else's module."""
    library = found.target.split(".")[0]
    arrow = f"{found.module} -> {library}"
    if found.typing:
        return
    if library == "torch" and room(found.module) == "store":
        yield f"{arrow}: the store knows no torch"
    derived = (found.module, library) in DERIVED
    if library in HEAVY and not found.lazy and not derived and room(found.module) != "loaders":
        yield f"{arrow}: import it where it is used"
    if library in ("click", "rich") and room(found.module) not in PRINTS:
        yield f"{arrow}: only the command line and the bar"
    if library == "pickle" and room(found.module) == "store":
        yield f"{arrow}: no pickle enters or leaves a store"


def wrong_output(module: str, tree: ast.Module) -> Iterator[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if room(module) not in PRINTS:
        for call in calls:
            if ast.unparse(call.func) in ("print", "input", "sys.stdout.write"):
                yield f"{module}:{call.lineno}: prints"


def wrong_environment(module: str, tree: ast.Module) -> Iterator[str]:
    uses = [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"))
        or (isinstance(node, ast.alias) and node.name in ("environ", "environb", "getenv", "putenv"))
    ]
    if len(uses) > ENVIRONMENT.get(module, 0):
        yield f"{module}:{uses[-1]}: the environment is read in settings.py only"


def faults(module: str, tree: ast.Module) -> list[str]:
    found = [fault for one in imports(module, tree) for fault in (*wrong_arrows(one), *wrong_weight(one))]
    return [*found, *wrong_output(module, tree), *wrong_environment(module, tree)]


@pytest.mark.parametrize("module", SOURCES)
def test_every_arrow_points_the_way_of_the_design(module: str) -> None:
    assert faults(module, SOURCES[module]) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("parbake.store.reader", "from parbake.store.zarr_dir import ROOT"),
        ("parbake.store.reader", "def f():\n    from parbake.store import zarr_dir"),
        ("parbake.store.layout", "from parbake.store.keys import Keys"),
        ("parbake.store.store", "import parbake.producers.bake"),
        ("parbake.store.cache", "from parbake.loaders import dataset"),
        ("parbake.store.novelty", "from parbake.store.layout import Field"),
        ("parbake.store.keys", "def f():\n    import torch"),
        ("parbake.store.keys", "from torch.nn import Module"),
        ("parbake.store.codecs", "from numcodecs import blosc"),
        ("parbake.store.codecs", "import pickle"),
        ("parbake.loaders.dataset", "from parbake.producers.plan import steps"),
        ("parbake.loaders.dataset", "import parbake"),
        ("parbake.producers.audio.sine", "from parbake.loaders.dataset import StoreDataset"),
        ("parbake.producers.audio.sine", "from parbake import Field"),
        ("parbake.producers.audio.sine", "from . import recipe"),
        ("parbake.producers.audio.sine", "import click"),
        ("parbake.producers.audio.sine", "class A:\n    import scipy.signal"),
        ("parbake.producers.bake", "from parbake.cli import main"),
        ("parbake.producers.bake", "if True:\n    print('done')"),
        ("parbake.producers.bake", "import os\nx = os.environ['HOME']"),
        ("parbake.producers.bake", "from os import getenv"),
        ("parbake.progress", "from parbake.cli_output import tell"),
        ("parbake.errors", "from parbake.settings import cache_home"),
        ("parbake.novelty", "from parbake.errors import ParbakeError"),
        ("parbake.store.store", "from parbake.browse.html import page"),
        ("parbake.browse.html", "from parbake.producers.bake import bake"),
        ("parbake.browse.html", "import xarray"),
        ("parbake.browse.engine", "import zarr"),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, source: str) -> None:
    assert len(faults(module, ast.parse(source))) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("parbake.store.verify", "if TYPE_CHECKING:\n    from parbake.store.store import Store"),
        ("parbake.producers.audio.sine", "def f():\n    import torch, scipy"),
        ("parbake.cli", "from parbake import human, __version__"),
        ("parbake.store.store", "def f():\n    from parbake.browse.html import page"),
        ("parbake.cli_new", "import click\nprint(1)"),
        ("parbake.loaders.dataset", "import torch"),
        ("parbake.browse.engine", "from xarray.backends import BackendEntrypoint"),
    ],
)
def test_a_right_arrow_is_left_alone(module: str, source: str) -> None:
    assert faults(module, ast.parse(source)) == []


def test_the_walk_sees_the_whole_package() -> None:
    assert {"parbake", "parbake.cli", "parbake.store.reader", "parbake.loaders.dataset"} <= SOURCES.keys()
    found = {(one.target, one.lazy, one.typing) for one in imports("parbake.cli", SOURCES["parbake.cli"])}
    assert ("click", False, False) in found
    assert ("parbake.store.store", True, False) in found
    assert ("parbake.store.store", False, True) in found


def loaded_by(statements: str) -> set[str]:
    """The top-level modules in a fresh interpreter after ``statements``."""
    code = f"{statements}\nimport sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statements",
    [
        "import parbake",
        "import parbake; parbake.open_store, parbake.Field, parbake.bake, parbake.errors",
        "import parbake.cli",
        "import parbake.cli_build, parbake.cli_inspect, parbake.cli_recipe, parbake.progress",
        "import parbake.producers.audio.sine, parbake.producers.recipe, parbake.producers.function",
        "import parbake; dir(parbake)",
    ],
)
def test_what_an_import_leaves_out(statements: str) -> None:
    loaded = loaded_by(statements)
    assert "parbake" in loaded
    assert loaded & HEAVY == set()


def test_import_parbake_loads_next_to_nothing() -> None:
    ours = loaded_by("import parbake") - loaded_by("import importlib, typing")
    assert ours <= {"parbake", "__future__"}


def test_what_is_left_out_is_seen_when_loaded() -> None:
    assert "torch" in loaded_by("import parbake; parbake.StoreDataset")


def test_the_face_tells_type_checkers_what_it_gives() -> None:
    """The imports under TYPE_CHECKING name what ``__getattr__`` finds, but for the errors."""
    import parbake

    tree = ast.parse(Path(parbake.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    told = {(n.module, a.name) for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    found = {(home, name) for name, home in parbake._HOME_OF.items() if home != "parbake.errors"}
    assert told == found
    for name in parbake.__all__:
        assert getattr(parbake, name) is not None
