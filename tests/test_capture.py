"""What a producer's values depend on, as JSON: it differs whenever the content does, and only then."""

from __future__ import annotations

import ast
import copy
import enum
import functools
import importlib
import importlib.util
import json
import linecache
import logging
import operator
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import types
from collections import defaultdict, deque, namedtuple
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from parbake.errors import KeysError, StoreNotFoundError
from parbake.store import files, source
from parbake.store.capture import Captured, capture
from parbake.store.files import file_sha256
from parbake.store.keys import Keys, canonical, producer_keys

REPO = Path(__file__).resolve().parents[1]


def told(value: Any) -> str:
    """All that a capture says of a value: what keys would hold."""
    captured = Captured()
    return canonical([capture(value, captured), captured.source, captured.bound])


def in_function(value: Any) -> str:
    """The same for a value in the closure of a function."""
    return told(lambda i: (value, i))


# ---- arrays


@settings(deadline=None)
@given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(max_dims=3, max_side=4)))
def test_equal_arrays_are_told_the_same_wherever_they_lie(array: np.ndarray) -> None:
    assert told(array) == told(array.copy())
    assert told(np.asfortranarray(array)) == told(array)
    assert told(array[::-1]) == told(array[::-1].copy())
    assert told(array.T) == told(array.T.copy())


@settings(deadline=None)
@given(hnp.arrays(np.float32, (2, 6)), st.integers(0, 11), st.integers(0, 31))
def test_every_flipped_bit_of_an_array_is_told(array: np.ndarray, index: int, bit: int) -> None:
    flipped = array.copy()
    flipped.reshape(-1).view(np.uint32)[index] ^= np.uint32(1 << bit)
    assert told(flipped) != told(array)


def test_shape_dtype_and_byte_order_of_an_array_are_told() -> None:
    array = np.arange(6, dtype="<i4")
    others = [
        array.reshape(2, 3),
        array.reshape(3, 2),
        array.view("<u4"),
        array.astype(">i4"),
        array.view("<f4"),
    ]
    assert len({told(a) for a in (array, *others)}) == 6
    zeros = np.zeros(2, [("a", "i4"), ("b", "i4")])
    assert told(zeros) != told(np.zeros(2, [("b", "i4"), ("a", "i4")]))
    assert told(np.zeros((0, 3))) != told(np.zeros((3, 0)))


def test_memory_mapped_array_is_told_as_its_content(tmp_path: Path) -> None:
    array = np.arange(5.0)
    np.save(tmp_path / "a.npy", array)
    assert told(np.load(tmp_path / "a.npy", mmap_mode="r")) == told(array)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a"], dtype=object),
        np.array(["a"], dtype=np.dtypes.StringDType()),
        np.zeros(2, [("a", object)]),
        np.ma.masked_array([1, 2], mask=[True, False]),
        np.array([1, 2]).view(np.recarray),
    ],
    ids=["object", "string", "object-field", "masked", "subclass"],
)
def test_arrays_that_are_more_than_their_bytes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(KeysError, match=r"^params\.table\[1\]: "):
        capture({"params": {"table": [0, array]}}, Captured())


def test_numpy_scalars_enter_by_item() -> None:
    assert told(np.float64(1.5)) == told(1.5)
    assert told(np.int8(3)) == told(3)
    assert told(np.bool_(True)) == told(True)
    assert told(np.float32(0.1)) != told(0.1)


# ---- declared values


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("-inf"), np.float32("nan"), {1}, frozenset({1}), b"x", 1j, object(), range(3)],
)
def test_what_json_lacks_is_refused_with_its_path(value: Any) -> None:
    with pytest.raises(KeysError, match=r"^a\.b\[1\]: "):
        capture({"a": {"b": [0, value]}}, Captured())


def test_mapping_keys_that_are_no_strings_are_refused() -> None:
    with pytest.raises(KeysError, match=r"^a: key 1 is not a string"):
        capture({"a": {1: 2}}, Captured())


def test_container_that_holds_itself_is_refused() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    with pytest.raises(KeysError, match=r"^\[1\]: refers to itself"):
        capture(ring, Captured())


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def test_enum_members_are_told_apart() -> None:
    assert told(Colour.RED) != told(Colour.BLUE)
    assert told(Colour.RED) == told(Colour.RED)


# ---- values that functions carry

PAIRS: dict[str, tuple[Any, Any]] = {
    "nan": (float("nan"), float("inf")),
    "bytes": (b"a", b"b"),
    "complex": (1j, 2j),
    "range": (range(3), range(4)),
    "slice": (slice(1), slice(2)),
    "set": ({1, 2}, {1, 3}),
    "frozenset": (frozenset("ab"), frozenset("ac")),
    "int keys": ({1: 2}, {1: 3}),
    "int and string keys": ({1: 2}, {"1": 2}),
    "tuple and string": ((1, 2), (1, "2")),
    "itemgetter bound": (functools.partial(operator.add, 1), functools.partial(operator.add, 2)),
    "default factory": (defaultdict(int), defaultdict(list)),
    "builtin method": ({"a": 1}.get, {"a": 2}.get),
    "str method": ("a".join, "b".join),
    "library functions": (np.sum, np.mean),
    "ufuncs": (np.sin, np.cos),
    "torch functions": (torch.sin, torch.cos),
    "torch and numpy": (torch.sin, np.sin),
    "functional": (nn.functional.relu, nn.functional.gelu),
    "classes": (int, float),
    "modules": (np, torch),
    "torch dtype": (torch.float32, torch.float64),
    "poly": (np.poly1d([1, 2]), np.poly1d([1, 3])),
    "vectorize": (np.vectorize(np.sin), np.vectorize(np.cos)),
    "logger": (logging.getLogger("a"), logging.getLogger("b")),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_in_a_closure_are_told_apart(name: str) -> None:
    one, other = PAIRS[name]
    assert in_function(one) != in_function(other)
    assert in_function(one) == in_function(one)


def test_sets_and_dicts_are_told_whatever_their_order() -> None:
    assert in_function({"b", "a", "c"}) == in_function({"c", "a", "b"})
    assert in_function({1: "a", 2: "b"}) == in_function({2: "b", 1: "a"})


@pytest.mark.parametrize(
    "value",
    [
        threading.Lock(),
        torch.Generator(),
        np.random.default_rng(1),
        np.random.default_rng(1).normal,
        (i for i in range(3)),
        deque([1]),
        date(2020, 1, 1),
        Decimal(1),
        operator.itemgetter(1),
        ValueError(1),
        np.frompyfunc(lambda i: i, 1, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_closures_that_nothing_can_see_into_are_refused(value: Any) -> None:
    with pytest.raises(KeysError, match=r"value\b.*not visible"):
        in_function(value)


def test_named_tuples_and_subclasses_are_told_by_class_and_content(tmp_path: Path) -> None:
    class Gains(dict[str, float]):
        def __missing__(self, key: str) -> float:
            return 1.0

    assert in_function(Gains(a=1)) != in_function({"a": 1})
    assert in_function(Gains(a=1)) != in_function(Gains(a=2))
    versions = (
        "import typing\nclass P(typing.NamedTuple):\n    a: int = 1\n"
        "    def twice(self): return {} * self.a\n"
    )
    assert told_of(tmp_path, versions.format(2), "P()") != told_of(tmp_path, versions.format(3), "P()")


def test_slots_and_private_attributes_are_told() -> None:
    class Slotted:
        __slots__ = ("__gain", "rate")

        def __init__(self, gain: int) -> None:
            self.__gain = gain

    assert in_function(Slotted(1)) != in_function(Slotted(2))


# ---- files


def test_file_is_told_by_content_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "a.json", tmp_path / "sub" / "b.json"
    other.parent.mkdir()
    one.write_bytes(b"content")
    other.write_bytes(b"content")
    assert told(one) == told(other)
    moved = one.rename(tmp_path / "c.json")
    assert told(moved) == told(other)
    other.write_bytes(b"Content")
    assert told(moved) != told(other)
    with pytest.raises(StoreNotFoundError, match="no such file"):
        told(one)
    with pytest.raises(KeysError, match="is a folder"):
        told(tmp_path)


@pytest.fixture
def large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A file that counts as large and as unchanged for long, and a list of the reads of it."""
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_MEMO_NBYTES", 1)
    monkeypatch.setattr(files.time, "time", lambda: 4e9)
    reads: list[str] = []
    hashed = files.hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        reads.append(file.name)
        return hashed(file, name)

    monkeypatch.setattr(files.hashlib, "file_digest", counted)
    path = tmp_path / "weights.bin"
    path.write_bytes(b"1" * 100)
    return path, reads


def test_hash_of_a_large_file_is_remembered_and_rehash_bypasses(large_file: tuple[Path, list[str]]) -> None:
    path, reads = large_file
    first = file_sha256(path)
    assert file_sha256(path) == first
    assert len(reads) == 1
    assert file_sha256(path, rehash=True) == first
    assert len(reads) == 2


def test_remembered_hash_does_not_outlive_a_change_that_keeps_size_and_mtime(
    large_file: tuple[Path, list[str]],
) -> None:
    path, _ = large_file
    before = path.stat()
    first = file_sha256(path)
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock's grain
        path.write_bytes(b"2" * 100)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )
    assert file_sha256(path) != first


def test_young_file_is_not_remembered(
    large_file: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads = large_file
    monkeypatch.setattr(files.time, "time", lambda: path.stat().st_mtime + 1.9)
    file_sha256(path)
    file_sha256(path)
    assert len(reads) == 2


def test_cache_folder_that_cannot_be_written_costs_time_only(
    large_file: tuple[Path, list[str]], tmp_path: Path
) -> None:
    path, reads = large_file
    (tmp_path / "cache").write_text("a file in its place")
    assert file_sha256(path) == file_sha256(path)
    assert len(reads) == 2


def test_cut_memo_is_not_believed(large_file: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, _ = large_file
    first = file_sha256(path)
    [memo] = (tmp_path / "cache" / "file-hashes").iterdir()
    memo.write_text("")
    assert file_sha256(path) == first


# ---- torch modules


class Scaled(nn.Module):
    def __init__(self, gain: float = 2.0, activation: Callable[..., Any] = torch.tanh) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.gain = gain
        self.activation = activation
        self.register_buffer("window", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * self.activation(self.linear(x) * self.window)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def with_window(value: float) -> nn.Module:
    module = Scaled()
    module.window.fill_(value)
    return module


def hooked(hook: Callable[..., Any]) -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_forward_hook(hook)
    return module


def normed(dim: int) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(2, 2), dim=dim)


def traced(forward: Callable[..., Any]) -> nn.Module:
    class Traced(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(x)

    return torch.fx.symbolic_trace(Traced())


def frozen_dtype(dtype: torch.dtype) -> nn.Module:
    module = nn.Linear(2, 2).to(dtype)
    for parameter in module.parameters():
        parameter.data.zero_()
    return module


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "activation": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
    ),
    "dilation": (lambda: nn.Conv1d(1, 1, 3, dilation=1), lambda: nn.Conv1d(1, 1, 3, dilation=4)),
    "padding mode": (
        lambda: nn.Conv1d(1, 1, 3, padding=1),
        lambda: nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"),
    ),
    "heads": (lambda: nn.MultiheadAttention(4, 2), lambda: nn.MultiheadAttention(4, 4)),
    "mode": (lambda: nn.Linear(2, 2).train(), lambda: nn.Linear(2, 2).eval()),
    "inner mode": (lambda: nn.Sequential(nn.Dropout()), lambda: nn.Sequential(nn.Dropout().eval())),
    "dtype": (lambda: frozen_dtype(torch.float32), lambda: frozen_dtype(torch.float64)),
    "non-persistent buffer": (lambda: with_window(1), lambda: with_window(2)),
    "attribute": (lambda: Scaled(2.0), lambda: Scaled(3.0)),
    "function attribute": (lambda: Scaled(activation=torch.tanh), lambda: Scaled(activation=torch.relu)),
    "lambda attribute": (lambda: Scaled(activation=lambda x: x), lambda: Scaled(activation=lambda x: 2 * x)),
    "eps": (lambda: nn.LayerNorm(2), lambda: nn.LayerNorm(2, eps=1e-3)),
    "dropout": (lambda: nn.LSTM(2, 2, 2, dropout=0.1), lambda: nn.LSTM(2, 2, 2, dropout=0.2)),
    "batch first": (lambda: nn.LSTM(2, 2), lambda: nn.LSTM(2, 2, batch_first=True)),
    "nonlinearity": (lambda: nn.RNN(2, 2), lambda: nn.RNN(2, 2, nonlinearity="relu")),
    "hook": (lambda: hooked(lambda m, a, out: out), lambda: hooked(lambda m, a, out: 2 * out)),
    "parametrization": (lambda: normed(0), lambda: normed(1)),
    "traced code": (lambda: traced(torch.sin), lambda: traced(torch.cos)),
    "order": (
        lambda: nn.Sequential(nn.Tanh(), nn.ReLU()),
        lambda: nn.Sequential(nn.ReLU(), nn.Tanh()),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_with_equal_weights_that_compute_differently_are_told_apart(name: str) -> None:
    one, other = MODULES[name]
    assert told(seeded(one)) != told(seeded(other))


@pytest.mark.parametrize("name", MODULES)
def test_equal_modules_built_twice_are_told_the_same(name: str) -> None:
    one = MODULES[name][0]
    assert told(seeded(one)) == told(seeded(one))


@pytest.mark.parametrize(
    "make",
    [
        Scaled,
        lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
        lambda: nn.GRU(3, 4),
        lambda: nn.TransformerEncoderLayer(8, 2),
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(), nn.Upsample(scale_factor=2)),
        lambda: normed(0),
    ],
    ids=["own", "lstm", "gru", "transformer", "conv", "parametrized"],
)
def test_copies_of_a_module_are_told_the_same(make: Callable[[], nn.Module]) -> None:
    module = make()
    assert told(copy.deepcopy(module)) == told(module)
    if not hasattr(module, "parametrizations"):  # torch refuses to pickle those
        assert told(pickle.loads(pickle.dumps(module))) == told(module)


def test_running_a_module_in_eval_mode_changes_nothing_that_is_told() -> None:
    module = nn.LSTM(2, 3).eval()
    before = told(module)
    module(torch.zeros(4, 1, 2))
    module.zero_grad()
    assert told(module) == before


def test_compiled_module_is_told_as_what_it_wraps() -> None:
    module = nn.Linear(2, 2)
    assert told(torch.compile(module)) == told(module)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_module_without_visible_code_or_values_is_refused() -> None:
    with pytest.raises(KeysError, match="TorchScript"):
        told(torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(KeysError):
        told(nn.LazyLinear(2))
    with pytest.raises(KeysError, match="plain bytes"):
        told(nn.Linear(2, 2, device="meta"))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_tensors_are_told_by_content_and_dtype() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert told(tensor) == told(tensor.clone()) == told(tensor.clone().requires_grad_())
    assert told(tensor.T) == told(tensor.T.contiguous())
    others = [tensor.T, tensor.double(), tensor + 1, tensor.bfloat16(), tensor.reshape(3, 2), tensor > 1]
    assert len({told(t) for t in (tensor, *others)}) == 7
    complex_ = torch.tensor([1 + 2j])
    assert told(complex_.conj()) == told(torch.tensor([1 - 2j])) != told(complex_)
    with pytest.raises(KeysError, match="sparse"):
        told(tensor.to_sparse_csr())


IN_PROCESS = """
import sys
import numpy as np, torch
from parbake.store.capture import Captured, capture
from parbake.store.keys import Keys, canonical, producer_keys
sys.path.insert(0, sys.argv[1])
import made
captured = Captured()
print(canonical([capture([made.module, made.table, made.f], captured), captured.source, captured.bound]))
"""


def test_another_process_tells_the_same(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "import numpy as np, torch\ntorch.manual_seed(0)\n"
        "module = torch.nn.Sequential(torch.nn.LSTM(2, 3, 2), torch.nn.Tanh())\n"
        "table = np.arange(7)\nNAMES = {'a', 'b', 'c', 'd'}\n"
        "def f(i, kind=frozenset({'x', 'y', 'z'})):\n    return i in NAMES, kind, table\n"
    )
    outputs = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", IN_PROCESS, str(tmp_path)]
        outputs.add(
            subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        )
    assert len(outputs) == 1
    assert "sha256" in outputs.pop()


# ---- source: user modules, edited


def told_of(tmp_path: Path, source: str | dict[str, str], expression: str = "f") -> str:
    """What is told of an expression in a user's module ``recipe`` (or of several modules) of this source."""
    sources = {"recipe": source} if isinstance(source, str) else source
    folder = tmp_path / f"version{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    for name, text in sources.items():
        file = folder / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    sys.path.insert(0, str(folder))
    before = set(sys.modules)
    try:
        recipe = __import__("recipe")
        return told(eval(expression, vars(recipe)))
    finally:
        sys.path.remove(str(folder))
        sys.path_importer_cache.pop(str(folder), None)
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)) or name.startswith(
                "pkg"
            ):
                del sys.modules[name]


F = "def f(i):\n    return g(i)\n"
CHANGED: dict[str, tuple[Any, Any]] = {
    "body": ("def f(i): return i", "def f(i): return i + 1"),
    "constant 1 and True": ("def f(i): return 1", "def f(i): return True"),
    "default": ("def f(i, k=1): return i", "def f(i, k=2): return i"),
    "computed default": ("K = 1\ndef f(i, k=K): return i", "K = 2\ndef f(i, k=K): return i"),
    "keyword-only default": ("def f(i, *, k=1): return i", "def f(i, *, k=2): return i"),
    "global": ("RATE = 1\ndef f(i): return RATE", "RATE = 2\ndef f(i): return RATE"),
    "global in a comprehension": (
        "RATE = 1\ndef f(i): return [RATE for _ in range(i)]",
        "RATE = 2\ndef f(i): return [RATE for _ in range(i)]",
    ),
    "global in a nested function": (
        "RATE = 1\ndef f(i):\n    def g(): return RATE\n    return g()",
        "RATE = 2\ndef f(i):\n    def g(): return RATE\n    return g()",
    ),
    "global declared global": (
        "RATE = 1\ndef f(i):\n    global RATE\n    RATE = RATE * 1\n    return RATE",
        "RATE = 2\ndef f(i):\n    global RATE\n    RATE = RATE * 1\n    return RATE",
    ),
    "global in a walrus": (
        "RATE = 1\ndef f(i): return (r := RATE) + r",
        "RATE = 2\ndef f(i): return (r := RATE) + r",
    ),
    "global in a match": (
        "class K: A = 1\ndef f(i):\n    match i:\n        case K.A: return 1",
        "class K: A = 2\ndef f(i):\n    match i:\n        case K.A: return 1",
    ),
    "global that some scope binds": (
        "x = 1\ndef f(i):\n    def g(x): return x\n    return g(i) + x",
        "x = 2\ndef f(i):\n    def g(x): return x\n    return g(i) + x",
    ),
    "helper": (F + "def g(i): return 1", F + "def g(i): return 2"),
    "helper of a helper": (
        F + "def g(i): return h(i)\ndef h(i): return 1",
        F + "def g(i): return h(i)\ndef h(i): return 2",
    ),
    "mutual recursion": (
        F + "def g(i): return f(i - 1) if i else 1",
        F + "def g(i): return f(i - 1) if i else 2",
    ),
    "async helper": (
        "async def g(i): return 1\nasync def f(i): return await g(i)",
        "async def g(i): return 2\nasync def f(i): return await g(i)",
    ),
    "lambda helper": ("g = lambda i: 1\n" + F, "g = lambda i: 2\n" + F),
    "closure of a helper": (
        "def make(k):\n    def inner(i): return k * i\n    return inner\ng = make(1)\n" + F,
        "def make(k):\n    def inner(i): return k * i\n    return inner\ng = make(2)\n" + F,
    ),
    "swapped helpers": (
        "def a(i): return 1\ndef b(i): return 2\nx, y = a, b\ndef f(i): return x(i) - y(i)",
        "def a(i): return 1\ndef b(i): return 2\nx, y = b, a\ndef f(i): return x(i) - y(i)",
    ),
    "builtin alias": ("CAST = int\ndef f(i): return CAST(i)", "CAST = float\ndef f(i): return CAST(i)"),
    "builtin function alias": (
        "best = max\ndef f(i): return best(i, 1)",
        "best = min\ndef f(i): return best(i, 1)",
    ),
    "imported alias": (
        "from numpy import sin as g\n" + F,
        "from numpy import cos as g\n" + F,
    ),
    "imported array function": ("from numpy import sum as g\n" + F, "from numpy import prod as g\n" + F),
    "imported module alias": (
        "import numpy.fft as m\ndef f(i): return m.norm(i)",
        "import numpy.linalg as m\ndef f(i): return m.norm(i)",
    ),
    "decorator argument": (
        "import functools\ndef scaled(k):\n    def deco(fn):\n        @functools.wraps(fn)\n"
        "        def inner(i): return k * fn(i)\n        return inner\n    return deco\n"
        "@scaled(1)\ndef g(i): return i\n" + F,
        "import functools\ndef scaled(k):\n    def deco(fn):\n        @functools.wraps(fn)\n"
        "        def inner(i): return k * fn(i)\n        return inner\n    return deco\n"
        "@scaled(2)\ndef g(i): return i\n" + F,
    ),
    "decorated body": (
        "import functools\ndef plain(fn):\n    @functools.wraps(fn)\n    def inner(i): return fn(i)\n"
        "    return inner\n@plain\ndef f(i): return 1",
        "import functools\ndef plain(fn):\n    @functools.wraps(fn)\n    def inner(i): return fn(i)\n"
        "    return inner\n@plain\ndef f(i): return 2",
    ),
    "user wrapper of a library function": (
        "import functools, numpy\n@functools.wraps(numpy.sin)\ndef g(i): return 1\n" + F,
        "import functools, numpy\n@functools.wraps(numpy.sin)\ndef g(i): return 2\n" + F,
    ),
    "cached helper": (
        "import functools\n@functools.lru_cache\ndef g(i): return 1\n" + F,
        "import functools\n@functools.lru_cache\ndef g(i): return 2\n" + F,
    ),
    "partial": (
        "from functools import partial\ndef h(k, i): return k\ng = partial(h, 1)\n" + F,
        "from functools import partial\ndef h(k, i): return k\ng = partial(h, 2)\n" + F,
    ),
    "class attribute": (
        "class K:\n    rate = 1\ndef f(i): return K.rate",
        "class K:\n    rate = 2\ndef f(i): return K.rate",
    ),
    "method": (
        "class K:\n    def g(self): return 1\ndef f(i): return K().g()",
        "class K:\n    def g(self): return 2\ndef f(i): return K().g()",
    ),
    "property": (
        "class K:\n    @property\n    def g(self): return 1\ndef f(i): return K().g",
        "class K:\n    @property\n    def g(self): return 2\ndef f(i): return K().g",
    ),
    "metaclass": (
        "class M(type):\n    rate = 1\nclass K(metaclass=M): pass\ndef f(i): return K.rate",
        "class M(type):\n    rate = 2\nclass K(metaclass=M): pass\ndef f(i): return K.rate",
    ),
    "callable object": (
        "class K:\n    def __init__(self, k): self.k = k\n    def __call__(self, i): return self.k\nf = K(1)",
        "class K:\n    def __init__(self, k): self.k = k\n    def __call__(self, i): return self.k\nf = K(2)",
    ),
    "bound method": (
        "class K:\n    def __init__(self, k): self.k = k\n    def g(self, i): return self.k\nf = K(1).g",
        "class K:\n    def __init__(self, k): self.k = k\n    def g(self, i): return self.k\nf = K(2).g",
    ),
    "class in a function": (
        "def make(k):\n    class K:\n        def __call__(self, i): return k\n    return K()\nf = make(1)",
        "def make(k):\n    class K:\n        def __call__(self, i): return k\n    return K()\nf = make(2)",
    ),
    "patched method": (
        "class K:\n    def __call__(self, i): return 1\ndef g(self, i): return 2\nf = K()",
        "class K:\n    def __call__(self, i): return 1\ndef g(self, i): return 2\nK.__call__ = g\nf = K()",
    ),
    "class attribute set later": (
        "class K:\n    rate = 1\ndef f(i): return K.rate\nK.rate = 2",
        "class K:\n    rate = 1\ndef f(i): return K.rate\nK.rate = 3",
    ),
    "one of two classes of a name": (
        "if True:\n    class K:\n        def g(self): return 1\nelse:\n    class K: pass\n"
        "def f(i): return K().g()",
        "if True:\n    class K:\n        def g(self): return 2\nelse:\n    class K: pass\n"
        "def f(i): return K().g()",
    ),
    "dataclass default": (
        "from dataclasses import dataclass\n@dataclass\nclass K:\n    k: int = 1\ndef f(i): return K().k",
        "from dataclasses import dataclass\n@dataclass\nclass K:\n    k: int = 2\ndef f(i): return K().k",
    ),
    "enum value": (
        "import enum\nclass E(enum.Enum):\n    A = 1\ndef f(i, e=E.A): return e.value",
        "import enum\nclass E(enum.Enum):\n    A = 2\ndef f(i, e=E.A): return e.value",
    ),
    "opaque constant": (
        "import torch\nG = torch.Generator().manual_seed(1)\ndef f(i): return torch.rand(1, generator=G)",
        "import torch\nG = torch.Generator().manual_seed(2)\ndef f(i): return torch.rand(1, generator=G)",
    ),
    "value beside a lock": (
        "import threading\nS = [threading.Lock(), 1]\ndef f(i): return S[1]\nS[1] = 2",
        "import threading\nS = [threading.Lock(), 1]\ndef f(i): return S[1]\nS[1] = 3",
    ),
    "nan and infinity": (
        "X = float('nan')\ndef f(i): return X",
        "X = float('inf')\ndef f(i): return X",
    ),
    "function attribute": (
        "def f(i): return f.k\nf.k = 1",
        "def f(i): return f.k\nf.k = 2",
    ),
    "module-level namedtuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'a b')\ndef f(i): return P(1, 2).a",
        "from collections import namedtuple\nP = namedtuple('P', 'b a')\ndef f(i): return P(1, 2).a",
    ),
    "file that is not written but read": (
        "LOG = 'a'\ndef f(i): return open(LOG, 'r').read()",
        "LOG = 'b'\ndef f(i): return open(LOG, 'r').read()",
    ),
    "opened by a helper, with a name like a mode": (
        "class H:\n    def open(self, name): return 1\nh = H()\ndef f(i): return h.open('weights')",
        "class H:\n    def open(self, name): return 2\nh = H()\ndef f(i): return h.open('weights')",
    ),
    "list that is added to and read": (
        "X = [1]\ndef f(i):\n    X.append(i)\n    return X[0]",
        "X = [2]\ndef f(i):\n    X.append(i)\n    return X[0]",
    ),
    "list that others add to": (
        "class T:\n    def __init__(self): self.rows = []\n    def add(self, row): self.rows.append(row)\n"
        "t = T()\nt.add(1)\ndef f(i): return t.rows[0]",
        "class T:\n    def __init__(self): self.rows = []\n    def add(self, row): self.rows.append(row)\n"
        "t = T()\nt.add(2)\ndef f(i): return t.rows[0]",
    ),
    "which lambda of a line": ("fs = [lambda i: i, lambda i: 2 * i]; f = fs[0]",) * 2,
}
OTHER_MODULE: dict[str, tuple[str, str, str]] = {  # the recipe, a helper module, the helper changed
    "function": ("from helper import g\n" + F, "def g(i): return 1", "def g(i): return 2"),
    "function of the module": (
        "import helper\ndef f(i): return helper.g(i)",
        "def g(i): return 1",
        "def g(i): return 2",
    ),
    "constant of the module": (
        "import helper\ndef f(i): return helper.RATE",
        "RATE = 1",
        "RATE = 2",
    ),
    "constant set at run time": (
        "import helper\nhelper.RATE = helper.OTHER\ndef f(i): return helper.RATE",
        "RATE = 0\nOTHER = 1",
        "RATE = 0\nOTHER = 2",
    ),
    "whole module": (
        "import helper\ndef f(i): return getattr(helper, 'g')(i)",
        "def g(i): return 1",
        "def g(i): return 2",
    ),
    "local import": (
        "def f(i):\n    import helper\n    return helper.g(i)",
        "def g(i): return 1",
        "def g(i): return 2",
    ),
    "local import of a name": (
        "def f(i):\n    from helper import g\n    return g(i)",
        "def g(i): return 1",
        "def g(i): return 2",
    ),
    "local import of a constant": (
        "def f(i):\n    from helper import RATE as r\n    return r",
        "RATE = 1",
        "RATE = 2",
    ),
    "base class": (
        "from helper import Base\nclass K(Base): pass\ndef f(i): return K().g()",
        "class Base:\n    def g(self): return 1",
        "class Base:\n    def g(self): return 2",
    ),
    "constant of a base class": (
        "from helper import Base\nclass K(Base): pass\nf = K()",
        "from dataclasses import dataclass\nRATE = 1\nclass Base:\n    def __call__(self, i): return RATE",
        "from dataclasses import dataclass\nRATE = 2\nclass Base:\n    def __call__(self, i): return RATE",
    ),
    "mixin of a library class": (
        "import torch\nfrom helper import Mixin\nclass K(Mixin, torch.nn.Module): pass\nf = K()",
        "class Mixin:\n    def forward(self, x): return 1",
        "class Mixin:\n    def forward(self, x): return 2",
    ),
    "decorator of a method": (
        "from helper import twice\nclass K:\n    @twice\n    def __call__(self, i): return i\nf = K()",
        "def twice(fn):\n    def inner(self, i): return 2 * fn(self, i)\n    return inner",
        "def twice(fn):\n    def inner(self, i): return 3 * fn(self, i)\n    return inner",
    ),
    "opaque constant": (
        "from helper import G\nimport torch\ndef f(i): return torch.rand(1, generator=G)",
        "import torch\nG = torch.Generator().manual_seed(1)",
        "import torch\nG = torch.Generator().manual_seed(2)",
    ),
    "cached function": (
        "from helper import g\n" + F,
        "import functools\n@functools.cache\ndef g(i): return 1",
        "import functools\n@functools.cache\ndef g(i): return 2",
    ),
    "value of a default": (
        "from helper import RATE\ndef f(i, rate=RATE): return rate",
        "RATE = 1",
        "RATE = 2",
    ),
    "enum": (
        "from helper import E\ndef f(i): return E.A.value",
        "import enum\nclass E(enum.Enum):\n    A = 1",
        "import enum\nclass E(enum.Enum):\n    A = 2",
    ),
    "torch module class": (
        "from helper import Net\nf = Net()",
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x): return 1",
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x): return 2",
    ),
    "parametrized torch module class": (
        "import torch\nfrom helper import Net\ntorch.manual_seed(0)\n"
        "f = torch.nn.utils.parametrizations.orthogonal(Net(2, 2))\n"
        "torch.nn.init.eye_(f.parametrizations.weight.original)",
        "import torch\nclass Net(torch.nn.Linear):\n    def forward(self, x): return 1",
        "import torch\nclass Net(torch.nn.Linear):\n    def forward(self, x): return 2",
    ),
}
UNCHANGED: dict[str, tuple[str, str]] = {
    "comment": ("def f(i): return i", "def f(i): return i  # as it is"),
    "docstring": ("def f(i): return i", 'def f(i):\n    """As it is."""\n    return i'),
    "class docstring": (
        "class K:\n    def __call__(self, i): return i\nf = K()",
        'class K:\n    """As it is."""\n    def __call__(self, i):\n        "And this."\n'
        "        return i\nf = K()",
    ),
    "layout": (
        "def f(i): return g(i)\ndef g(i): return 1",
        "\n\n\ndef g(i):\n    return 1\n\ndef f(i):\n    return (g(\n        i))",
    ),
    "unrelated function": ("def f(i): return i", "def other(): return 2\ndef f(i): return i"),
    "unrelated constant": ("RATE = 1\ndef f(i): return RATE", "RATE = 1\nOTHER = 2\ndef f(i): return RATE"),
    "local of a global's name": ("k = 1\ndef f(k): return k", "k = 2\ndef f(k): return k"),
    "comprehension's own name": (
        "k = 1\ndef f(i): return [k for k in range(i)]",
        "k = 2\ndef f(i): return [k for k in range(i)]",
    ),
    "list of calls": (
        "calls = []\ndef f(i):\n    calls.append(i)\n    return i",
        "calls = [1, 2]\ndef f(i):\n    calls.append(i)\n    return i",
    ),
    "counter": (
        "count = 0\ndef f(i):\n    global count\n    count += 1\n    return i",
        "count = 5\ndef f(i):\n    global count\n    count += 1\n    return i",
    ),
    "counter in a dict": (
        "counts = {'f': 0}\ndef f(i):\n    counts['f'] += 1\n    return i",
        "counts = {'f': 9}\ndef f(i):\n    counts['f'] += 1\n    return i",
    ),
    "log file": (
        "LOG = 'a.log'\ndef f(i):\n    with open(LOG, 'a') as log: log.write('x')\n    return i",
        "LOG = 'b.log'\ndef f(i):\n    with open(LOG, 'a') as log: log.write('x')\n    return i",
    ),
    "log file by keyword": (
        "from pathlib import Path\nLOG = Path('a.log')\ndef f(i):\n    LOG.open(mode='a').close()\n"
        "    return i",
        "from pathlib import Path\nLOG = Path('b.log')\ndef f(i):\n    LOG.open(mode='a').close()\n"
        "    return i",
    ),
    "calls in a closure": (
        "def make():\n    calls = []\n    def f(i):\n        calls.append(i)\n        return i\n"
        "    return f\nf = make()",
        "def make():\n    calls = []\n    def f(i):\n        calls.append(i)\n        return i\n"
        "    return f\nf = make()\nf(3)",
    ),
    "calls of a class": (
        "class K:\n    calls = []\n    def __call__(self, i):\n        self.calls.append(i)\n"
        "        return i\nf = K()",
        "class K:\n    calls = []\n    def __call__(self, i):\n        self.calls.append(i)\n"
        "        return i\nf = K()\nf(1)",
    ),
    "calls of a function": (
        "def f(i):\n    f.calls += 1\n    return i\nf.calls = 0",
        "def f(i):\n    f.calls += 1\n    return i\nf.calls = 1",
    ),
    "cache that was filled": (
        "import functools\n@functools.cache\ndef g(i): return 1\ndef f(i): return g(i)",
        "import functools\n@functools.cache\ndef g(i): return 1\ndef f(i): return g(i)\nf(2)",
    ),
    "logger": (
        "import logging\nlog = logging.getLogger('a')\ndef f(i):\n    log.info('x')\n    return i",
        "import logging\nlog = logging.getLogger('a')\ndef f(i):\n    log.info('x')\n    return i\n"
        "def other(): pass",
    ),
    "other method of a library module": (
        "import numpy as np\ndef f(i): return np.sin(i)",
        "import numpy as np\nx = np.zeros(3)\ndef f(i): return np.sin(i)",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_changed_source_is_told(name: str, tmp_path: Path) -> None:
    one, other = CHANGED[name]
    changed = told_of(tmp_path, other, "fs[1]" if one == other else "f")
    assert told_of(tmp_path, one) != changed
    assert told_of(tmp_path, one) == told_of(tmp_path, one)


@pytest.mark.parametrize("name", OTHER_MODULE)
def test_changed_source_of_another_module_is_told(name: str, tmp_path: Path) -> None:
    recipe, one, other = OTHER_MODULE[name]
    first = told_of(tmp_path, {"recipe": recipe, "helper": one})
    assert first != told_of(tmp_path, {"recipe": recipe, "helper": other})
    assert first == told_of(tmp_path, {"recipe": recipe, "helper": one + "\n# a comment\n"})


@pytest.mark.parametrize("name", UNCHANGED)
def test_change_of_source_that_matters_to_no_value_is_not_told(name: str, tmp_path: Path) -> None:
    one, other = UNCHANGED[name]
    assert told_of(tmp_path, one) == told_of(tmp_path, other)


def test_unrelated_function_of_a_module_that_is_used_by_attribute_is_not_told(tmp_path: Path) -> None:
    recipe = "import helper\ndef f(i): return helper.g(i)"
    helper = "def g(i): return 1\n"
    first = told_of(tmp_path, {"recipe": recipe, "helper": helper})
    assert first == told_of(tmp_path, {"recipe": recipe, "helper": helper + "def other(): return 2\n"})


def test_submodules_of_a_package_are_followed(tmp_path: Path) -> None:
    def version(rate: int, recipe: str) -> str:
        pkg = {
            "pkg.__init__": "",
            "pkg.sub": f"from . import deep\nRATE = {rate}\ndef g(i): return RATE + deep.D",
        }
        return told_of(tmp_path, {"recipe": recipe, **pkg, "pkg.deep": "D = 1"})

    dotted = "import pkg.sub\ndef f(i): return pkg.sub.g(i)"
    assert version(1, dotted) != version(2, dotted)
    local = "def f(i):\n    from pkg import sub\n    return sub.g(i)"
    assert version(1, local) != version(2, local)


def test_equal_names_in_two_modules_of_a_package_are_both_told(tmp_path: Path) -> None:
    def version(a: int, b: int) -> str:
        modules = {
            "pkg.__init__": "",
            "pkg.a": f"R = {a}\ndef g(): return R",
            "pkg.b": f"R = {b}\ndef g(): return R",
        }
        return told_of(
            tmp_path, {"recipe": "from pkg import a, b\ndef f(i): return a.g() + b.g()", **modules}
        )

    assert len({version(1, 1), version(1, 2), version(2, 1)}) == 3


def test_swapped_imports_are_told(tmp_path: Path) -> None:
    helper = "def a(i): return 1\ndef b(i): return 2"
    body = "def f(i): return x(i) - y(i)"
    one = told_of(tmp_path, {"recipe": f"from helper import a as x, b as y\n{body}", "helper": helper})
    assert one != told_of(
        tmp_path, {"recipe": f"from helper import b as x, a as y\n{body}", "helper": helper}
    )


def test_global_changed_at_run_time_is_told(tmp_path: Path) -> None:
    source = "RATE = 1\ndef f(i): return RATE\ndef changed():\n    global RATE\n    RATE = 2\n    return f"
    assert told_of(tmp_path, source, "f") != told_of(tmp_path, source, "changed()")


@pytest.mark.parametrize(
    "expression",
    [
        "(lambda i: lambda j: j)",
        "(lambda i: lambda j: j)(1)",
        "apply(lambda i: i,\n    lambda i:\n        2 * i)[1]",
    ],
)
def test_lambdas_within_expressions_are_found(expression: str, tmp_path: Path) -> None:
    source = f"def apply(*fs): return fs\nf = {expression}"
    assert told_of(tmp_path, source) == told_of(tmp_path, source)


def test_each_lambda_of_one_line_is_told_by_its_own_source(tmp_path: Path) -> None:
    line = (
        "f = [lambda i: i, lambda i: [j for j in (1,)], "
        "lambda i: (lambda j: i)(i), lambda i: lambda j: j][{}]"
    )
    first = [told_of(tmp_path, line.format(k)) for k in range(4)]
    assert len(set(first)) == 4
    edited = line.replace("lambda i: i,", "lambda i: 7,")
    assert [told_of(tmp_path, edited.format(k)) == first[k] for k in range(4)] == [False, True, True, True]


def test_file_edited_since_the_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "edited_recipe.py"
    file.write_text("RATE = 1\ndef f(i): return 1\nclass K:\n    def __call__(self, i): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("edited_recipe")
    before = told(module.f)
    file.write_text("RATE = 1\n\n\ndef f(i): return 1\nclass K:\n    def __call__(self, i): return 3\n")
    assert told(module.f) == before  # moved, but the same
    with pytest.raises(KeysError, match="no longer holds the code that runs"):
        told(module.K())
    file.write_text("RATE = 1\ndef f(i): return 2\n")
    with pytest.raises(KeysError, match="no longer holds the code that runs"):
        told(module.f)


def test_definitions_without_source_are_refused() -> None:
    scope: dict[str, Any] = {"__name__": "nowhere"}
    exec("def f(i): return i\nclass K:\n    def __call__(self, i): return i", scope)
    for thing in (scope["f"], scope["K"](), eval("lambda i: i")):
        with pytest.raises(KeysError, match="source cannot be read"):
            told(thing)
    dynamic = types.ModuleType("dynamic_recipe")
    sys.modules["dynamic_recipe"] = dynamic
    try:
        exec("def f(i): return i", vars(dynamic))
        with pytest.raises(KeysError, match="source cannot be read"):
            told(dynamic.f)
    finally:
        del sys.modules["dynamic_recipe"]


def test_classes_of_calls_are_told_by_the_module_that_makes_them() -> None:
    assert told(Point(1, 2)) != told(Point(1, 3))
    assert "test_capture" in told(Point)


Point = namedtuple("Point", "a b")


def test_notebook_cells_are_told_by_their_source() -> None:
    def cell(text: str) -> str:
        scope: dict[str, Any] = {"__name__": "__main__"}
        name = "<ipython-input-1-abc>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), scope)
        try:
            return told(scope["f"])
        finally:
            del linecache.cache[name]

    source = "RATE = 1\nclass K:\n    def g(self): return RATE\ndef f(i): return K().g()\n"
    first = cell(source)
    assert first == cell("# a comment\n" + source)
    assert first != cell(source.replace("RATE = 1", "RATE = 2"))
    assert first != cell(source.replace("return RATE", "return 2 * RATE"))


def test_script_has_the_keys_of_the_same_file_imported(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from dataclasses import dataclass\nimport json\n"
        "from parbake.store.capture import Captured, capture\n"
        "RATE = 2\ndef g(i): return RATE * i\n@dataclass\nclass K:\n    k: int = 1\n"
        "    def __call__(self, i): return g(i) * self.k\n"
        "def tell():\n    captured = Captured()\n"
        "    print(json.dumps([capture(K(), captured), captured.source, captured.bound], sort_keys=True))\n"
        "if __name__ == '__main__': tell()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    as_script = run("script.py")
    assert json.loads(as_script)[1].keys() >= {"script.K", "script.g"}
    assert as_script == run("-c", "import script; script.tell()") == run("-m", "script")


LAZY = """
import numpy as np
_model = None
def model():
    global _model
    if _model is None:
        _model = np.arange({})
    return _model
def fn(index):
    return model() * index
"""


def test_model_loaded_at_the_first_call_is_told_by_its_source(tmp_path: Path) -> None:
    before = told_of(tmp_path, LAZY.format(5), "fn")
    assert told_of(tmp_path, LAZY.format(5), "(fn(1), fn)[1]") == before
    assert told_of(tmp_path, LAZY.format(6), "fn") != before
    assert told_of(tmp_path, LAZY.format(5).replace("_model = None", "_model = np.ones(3)"), "fn") != before


def test_libraries_of_another_environment_are_no_user_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lib" / "site-packages"
    folder.mkdir(parents=True)
    (folder / "elsewhere_installed.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(folder)
    source._library_roots.cache_clear()
    try:
        assert not source.is_user_code(importlib.import_module("elsewhere_installed").double)
    finally:
        source._library_roots.cache_clear()


# ---- the number of samples

COUNTED = """
from dataclasses import dataclass
import parbake
{top}
@dataclass(frozen=True)
class P:
    gain: float = 1.0
    samples: int = {default}
    name = "p"
    version = 1
    def schema(self): return {{"y": parbake.Field((2,), "float32", ("t",))}}
    def invalidation_keys(self): return {{"gain": self.gain}}
    def __len__(self): return self.samples
    def produce(self, start, stop, fields): return {use}
"""


def keys_of(folder: Path, default: str, use: str = "{}", top: str = "") -> Keys:
    """What a producer defined in a module of its own depends on."""
    linecache.clearcache()
    file = folder / "counted.py"
    file.write_text(COUNTED.format(default=default, use=use, top=top))
    spec = importlib.util.spec_from_file_location("counted", file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["counted"] = module = importlib.util.module_from_spec(spec)
    try:
        exec(compile(file.read_text(), file, "exec"), vars(module))
        return producer_keys(module.P())[0]
    finally:
        del sys.modules["counted"]


@pytest.mark.parametrize(
    ("one", "other"), [("50", "60"), ("field(default=50)", "field(default=60)"), ("N", "M")]
)
def test_a_default_that_only_counts_samples_is_no_key(one: str, other: str, tmp_path: Path) -> None:
    top = "from dataclasses import field\nN, M = 50, 60"
    first, second = keys_of(tmp_path, one, top=top), keys_of(tmp_path, other, top=top)
    assert first == second
    assert "P.gain" in str(first.shared)
    assert "P.samples" not in str(first.shared)


@pytest.mark.parametrize("use", ["self.samples", "len(self)", "getattr(self, 'samples')", "vars(self)"])
def test_a_default_that_values_may_depend_on_is_a_key(use: str, tmp_path: Path) -> None:
    assert keys_of(tmp_path, "50", use) != keys_of(tmp_path, "60", use)


def test_a_length_that_a_value_is_made_of_is_told(tmp_path: Path) -> None:
    text = "class D:\n    n: int = {}\n    def __len__(self): return self.n\ndef f(i): return len(D())"
    assert told_of(tmp_path, text.format(5)) != told_of(tmp_path, text.format(6))


def test_definitions_in_a_notebook_are_told() -> None:
    """A notebook compiles a cell statement by statement, and so otherwise than a file."""
    cell = (
        "import math\nclass K:\n    def g(self, i): return math.sin(i)\ndef f(i): return math.cos(i), K()\n"
    )
    name = "<a cell>"
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"__name__": "__main__"}
    for statement in ast.parse(cell).body:
        exec(compile(ast.Module([statement], []), name, "exec"), scope)
    captured = Captured()
    capture(scope["f"], captured)
    assert {path.rpartition(".")[2] for path in captured.source} == {"f", "K"}
