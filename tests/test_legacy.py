"""read_legacy: caches of torch.save and pickle become producers, and nothing that they name is run."""

from __future__ import annotations

import collections
import contextlib
import gzip
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.errors import LegacyFileError, ParbakeError, StoreNotFoundError
from parbake.producers.bake import bake
from parbake.producers.legacy import cache
from parbake.producers.legacy.cache import LegacyCache, is_legacy, read_legacy
from parbake.producers.legacy.machine import unpickled
from parbake.store.keys import Producer, compare, producer_keys
from parbake.store.layout import Coord, Field

NAMES = ("x", "y", "f0", "dB")


def refused(call: Callable[[], object]) -> str:
    """The one line with which ``call`` refuses a file."""
    with pytest.raises(LegacyFileError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    return text


def saved(folder: Path, content: Any, name: str = "cached.pt", **options: Any) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


def pickled(folder: Path, content: Any, protocol: int = 4, name: str = "cached.pkl") -> Path:
    (folder / name).write_bytes(pickle.dumps(content, protocol))
    return folder / name


def guides_samples(samples: int = 6, width: int = 52_920) -> list[tuple[torch.Tensor, ...]]:
    """As the guide's script saves them: float64 [time, 1], and two numbers as tensors."""
    generator = torch.Generator().manual_seed(1)
    waves = torch.randn(samples, 2, width, 1, generator=generator, dtype=torch.float64)
    return [
        (waves[i, 0], waves[i, 1], torch.tensor(55.0 * (i + 1), dtype=torch.float64), torch.tensor(-6.0 * i))
        for i in range(samples)
    ]


def mesh_samples(steps: int = 5) -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    return [
        {
            "timestep": step,
            "coarse_interp": rng.standard_normal((40, 3)),
            "fine_features": np.asfortranarray(rng.standard_normal((40, 3)).astype(np.float32)),
        }
        for step in range(steps)
    ]


def produced(legacy: LegacyCache) -> dict[str, Any]:
    return dict(legacy.produce(0, len(legacy), tuple(legacy.schema())))


def assert_holds_mesh(legacy: LegacyCache, samples: list[dict[str, Any]]) -> None:
    found = produced(legacy)
    assert list(found) == ["timestep", "coarse_interp", "fine_features"]
    for name, array in found.items():
        wanted = np.stack([np.asarray(sample[name]) for sample in samples])
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)


# ---- torch.save


@pytest.mark.parametrize("zipped", [True, False])
def test_the_guides_cache_becomes_a_store_of_the_same_values(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path, guides_samples(), _use_new_zipfile_serialization=zipped)
    legacy = read_legacy(path, NAMES)
    assert isinstance(legacy, Producer)
    with bake(legacy, tmp_path / "a.zarr", progress=False) as store:
        assert store["x"].shape == (6, 52_920, 1)
        assert store["x"].dtype == np.float64
        assert store.freshness(read_legacy(path, NAMES))
        for i, sample in enumerate(torch.load(path, weights_only=True)):
            for name, value in zip(NAMES, sample, strict=True):
                np.testing.assert_array_equal(store[name][i], value.numpy())


def test_tuples_without_names_tell_what_there_is_to_name(tmp_path: Path) -> None:
    path = saved(tmp_path, guides_samples(2))
    text = refused(lambda: read_legacy(path))
    assert "4 entries: float64 [52920, 1], float64 [52920, 1], float64, float32" in text
    assert "--fields name0,name1,name2,name3" in text
    assert "3 names are given (a,b,d)" in refused(lambda: read_legacy(path, ("a", "b", "d")))
    assert list(read_legacy(path, ("x", "-", "-", "dB")).schema()) == ["x", "dB"]
    assert "give each name once" in refused(lambda: read_legacy(path, ("x", "x", "f0", "dB")))
    assert "left out" in refused(lambda: read_legacy(path, ("-", "-", "-", "-")))


STACK = torch.arange(24.0).reshape(4, 3, 2)


@pytest.mark.parametrize(
    ("content", "fields", "wanted"),
    [
        ({"x": STACK, "f0": torch.arange(4)}, None, {"x": STACK, "f0": torch.arange(4)}),
        ({"x": STACK, "f0": torch.arange(4)}, ("f0",), {"f0": torch.arange(4)}),
        ({"x": STACK, "rate": 44_100}, ("x",), {"x": STACK}),
        (
            {"x": STACK, "f0": [1, 2.5, 3, 4]},
            None,
            {"x": STACK, "f0": torch.tensor([1, 2.5, 3, 4.0]).double()},
        ),
        ((STACK, torch.arange(4)), ("x", "f0"), {"x": STACK, "f0": torch.arange(4)}),
        ([STACK, STACK + 1], ("x", "y"), {"x": STACK, "y": STACK + 1}),
        (list(STACK), ("x",), {"x": STACK}),
        (STACK, None, {"value": STACK}),
        (STACK, ("x",), {"x": STACK}),
        ([{"x": row, "i": i} for i, row in enumerate(STACK)], None, {"x": STACK, "i": torch.arange(4)}),
        ({"samples": [(row,) for row in STACK], "config": {"rate": 1}}, ("x",), {"x": STACK}),
        ({"data": {"x": STACK}, "epoch": 3}, None, {"x": STACK}),
        ([1.5, 2.5], ("x",), {"x": torch.tensor([1.5, 2.5]).double()}),
        (
            [(True, 1j)],
            ("b", "z"),
            {"b": torch.tensor([True]), "z": torch.tensor([1j], dtype=torch.complex128)},
        ),
        ([{"x": row.bfloat16()} for row in STACK], None, {"x": STACK}),
        (STACK.bfloat16(), None, {"value": STACK}),
        (torch.nn.Parameter(STACK), None, {"value": STACK}),
        ([{"x": torch.nn.Parameter(row)} for row in STACK], None, {"x": STACK}),
        (STACK.transpose(1, 2), None, {"value": STACK.transpose(1, 2)}),
        ([{"x": row.T} for row in STACK], None, {"x": STACK.transpose(1, 2)}),
        ((STACK * 1j).conj(), None, {"value": (STACK * -1j)}),
        ([{"x": row.half(), "n": i % 2 == 0} for i, row in enumerate(STACK)], ("x",), {"x": STACK.half()}),
    ],
)
def test_each_known_form_gives_its_values(
    content: Any, fields: Any, wanted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    found = produced(read_legacy(saved(tmp_path, content), fields))
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(found[name], tensor.numpy())


@pytest.mark.parametrize(
    ("content", "fields", "said"),
    [
        (
            [(torch.zeros(3),), (torch.zeros(4),)],
            ("x",),
            "sample 1 has shape [4] where sample 0 has [3]; ragged",
        ),
        ([(STACK,), (STACK.double(),)], ("x",), "'x': sample 1 is float64 where sample 0 is float32"),
        (
            [(1.0,), (torch.tensor(1.0).double(),)],
            ("x",),
            "sample 1 is float64 where sample 0 is a Python float64",
        ),
        ([(1,), (True,)], ("x",), "sample 1 is a Python bool"),
        ([{"x": torch.zeros(2), "id": "a"}], None, "field 'id': sample 0 holds a text"),
        ([{"x": torch.zeros(2), "id": "a"}], None, "--fields x"),
        ([(torch.zeros(2), None)], ("x", "y"), "leave it out: --fields name0,-"),
        ([{"x": torch.zeros(2)}, {"y": torch.zeros(2)}], None, "sample 1 has no 'x'"),
        ([{"x": 1}, {"x": 1, "y": 2}], None, "sample 1 has 'y' too"),
        ([{"x": 1}, 3], None, "sample 1 is int64 where sample 0 is a dict"),
        ([(1, 2), (1,)], ("x", "y"), "sample 1 is a tuple of 1"),
        (
            {"x": torch.zeros(3), "y": torch.zeros(2)},
            None,
            "different lengths along the sample axis (x 3, y 2)",
        ),
        ({"x": torch.zeros(3), "rate": 3}, None, "field 'rate': int64 where samples along a first axis"),
        ({"x": torch.zeros(3)}, ("z",), "no entry 'z' in the dict; there are x"),
        ([{0: torch.zeros(3)}], None, "named by ints"),
        ([{"a b": 1}], None, "field name 'a b' is not allowed"),
        ({"w": {"x": torch.zeros(3)}, "v": {"x": torch.zeros(3)}}, None, "'w': a dict of 1"),
        ([], None, "no samples"),
        ((), None, "no samples"),
        ({"x": torch.zeros(0, 3)}, None, "no samples"),
        ({"x": torch.zeros(3, 0)}, None, "empty axis"),
        (torch.tensor(1.0), None, "float32 where samples along a first axis"),
        ("text", None, "holds a text"),
        (None, None, "holds None"),
        (["a", "b"], None, "list of a text"),
        ([{"x": torch.zeros(3).to_sparse()}], None, "a tensor of torch.float32 (torch.sparse_coo, cpu)"),
        ([{"x": torch.zeros(3, device="meta")}], None, "(torch.strided, meta)"),
        ([{"x": torch.zeros(3).to(torch.float8_e5m2)}], None, "torch.float8_e5m2"),
        ([{"x": 2**70}], None, "an integer of 71 bits"),
        ([torch.zeros(2), torch.zeros(2)], None, "2 stacked entries: float32 [2], float32 [2]; name each"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(
    content: Any, fields: Any, said: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, content)
    text = refused(lambda: read_legacy(path, fields))
    assert text.startswith(f"{path}: ")
    assert said in text


def test_the_lines_that_pad_ragged_samples_do_pad_them(tmp_path: Path) -> None:
    samples = [np.ones((n, 2)) for n in (3, 5)]
    text = refused(lambda: read_legacy(pickled(tmp_path, [{"x": sample} for sample in samples])))
    lines = re.findall(r"(?:length|x) = [^;]*(?=;|$)", text)
    padded = []
    for sample in samples:
        scope = {"x": sample, "np": np, "longest": 5}
        for line in lines:
            exec(line, scope)
        padded.append({"x": scope["x"], "length": scope["length"]})
    legacy = read_legacy(pickled(tmp_path, padded))
    assert legacy.schema()["x"].shape == (5, 2)
    assert produced(legacy)["length"].tolist() == [3, 5]


MEMORY = """
import sys, torch
from parbake.producers.legacy.cache import read_legacy
def anonymous():
    [line] = [l for l in open("/proc/self/status") if l.startswith("RssAnon")]
    return int(line.split()[1]) * 1024
path, fields, step = sys.argv[1], sys.argv[2].split(","), 8
start = anonymous()
legacy = read_legacy(path, fields)
peak = anonymous()
for first in range(0, len(legacy), step):
    batch = legacy.produce(first, first + step, fields)
    peak = max(peak, anonymous())
print(peak - start, sum(float(a.sum()) for a in batch.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("kind", ["listed.pt", "stacked.pt", "listed.pkl", "stacked.pkl.gz"])
def test_memory_is_a_small_part_of_the_file(kind: str, tmp_path: Path) -> None:
    waves = np.ones((256, 1 << 15))  # 64 MiB
    path = tmp_path / kind
    array = torch.from_numpy if kind.endswith(".pt") else np.asarray
    content = [(array(wave),) for wave in waves] if "listed" in kind else (array(waves),)
    if kind.endswith(".pt"):
        torch.save(content, path)
    else:
        raw = pickle.dumps(content, 5)
        path.write_bytes(gzip.compress(raw, 1) if kind.endswith(".gz") else raw)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), "x"], capture_output=True, text=True, check=True
    )
    grown, total = done.stdout.split()
    assert float(total) == 8 * (1 << 15)
    assert int(grown) < 16 * 1024**2


@pytest.mark.parametrize("change", ["np.float64", "class", "lambda", "cut", "text", "tar"])
def test_a_hostile_or_broken_torch_file_is_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "cached.pt"
    trap = tmp_path / "ran"
    if change == "np.float64":
        saved(tmp_path, [(np.float64(1),)])
    elif change == "class":
        saved(tmp_path, [(torch.zeros(2), Trap(str(trap)))])
    elif change == "lambda":
        saved(tmp_path, [(torch.zeros(2), os.path.join)])
    elif change == "cut":
        saved(tmp_path, [(torch.zeros(2000),)])
        path.write_bytes(path.read_bytes()[:3000])
    elif change == "text":
        path.write_bytes(b"PK\x03\x04 and nothing of a zip file")
    else:
        path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.cos\nsystem\n(S'touch'\ntR.")
    text = refused(lambda: read_legacy(path, ("x",)))
    assert "weights_only" not in text
    assert not trap.exists()
    if change in ("np.float64", "class"):
        assert "code, not data" in text


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.file, "w")


# ---- pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("numpy", ["2", "1"])
def test_the_guides_pickles_become_the_same_values(protocol: int, numpy: str, tmp_path: Path) -> None:
    samples = mesh_samples()
    path = pickled(tmp_path, samples, protocol)
    if numpy == "1":
        path.write_bytes(as_numpy_1(path.read_bytes()))
        assert b"numpy._core" not in path.read_bytes()
    assert_holds_mesh(read_legacy(path), samples)


def as_numpy_1(raw: bytes) -> bytes:
    """A pickle as NumPy 1 writes it: ``numpy.core``, with the lengths of names and frames that follow."""
    raw = raw.replace(b"cnumpy._core", b"cnumpy.core")
    for module in (b"multiarray", b"numeric"):
        old, new = b"numpy._core." + module, b"numpy.core." + module
        raw = raw.replace(
            struct.pack("<cB", b"\x8c", len(old)) + old, struct.pack("<cB", b"\x8c", len(new)) + new
        )
    return raw


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_values_are_those_that_pickle_gives(protocol: int) -> None:
    content = [
        *(
            None,
            True,
            False,
            0,
            255,
            65_536,
            -1,
            2**31,
            -(2**70),
            1.5,
            -0.0,
            1 - 2j,
            "\u00e9\n\\\ud83d",
            "x" * 300,
        ),
        *((), (1,), (1, 2), (1, 2, 3), tuple(range(9)), [], [[1], {}], {"a": 1, 2: "b", None: 3.0, 1.5: ()}),
        collections.OrderedDict(a=1, b=[2]),
    ]
    content.append(content[15:17])  # seen twice: through the memo
    content.append("x" * 300)
    raw = pickle.dumps(content, protocol)
    assert unpickled(raw, "f") == pickle.loads(raw) == content


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        *(
            np.arange(6, dtype=dtype).reshape(2, 3)
            for dtype in ("b", "u1", ">i2", "<u4", "i8", "f2", ">f4", "f8", "F", "D")
        ),
        np.array([True, False]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12.0).reshape(3, 4)[:, ::2],
        np.array(1.5),
        np.zeros((0, 3)),
        *(np.float64(1.5), np.float32(0.1), np.int16(-3), np.bool_(True), np.complex64(1j)),
    ],
)
def test_arrays_and_scalars_are_those_that_pickle_gives(array: Any, protocol: int) -> None:
    raw = pickle.dumps([array, array], protocol)
    for data in (raw, as_numpy_1(raw)):
        for found in unpickled(data, "f"):
            assert (found.dtype, found.shape, type(found)) == (array.dtype, array.shape, type(array))
            np.testing.assert_array_equal(found, array)


def test_gzip_and_python_2_pickles_are_read(tmp_path: Path) -> None:
    samples = mesh_samples()
    path = tmp_path / "cached.pkl"
    path.write_bytes(gzip.compress(pickle.dumps(samples, 3)))
    assert_holds_mesh(read_legacy(path), samples)
    path.write_bytes(
        b"(dp0\nS'x'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\n"
        b"Rp7\n(I1\n(I2\ntp8\ncnumpy\ndtype\np9\n(S'f4'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\n"
        b"tp14\nbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\np15\ntp16\nbs."
    )
    assert produced(read_legacy(path))["x"].tolist() == [1.0, 2.0]


def test_a_torch_file_is_known_by_what_it_holds_and_not_by_its_name(tmp_path: Path) -> None:
    assert produced(read_legacy(saved(tmp_path, {"x": STACK}, "cached.pkl")))["x"].shape == (4, 3, 2)
    assert produced(read_legacy(pickled(tmp_path, {"x": STACK.numpy()}, name="cached.pt")))["x"].shape == (
        4,
        3,
        2,
    )
    assert [is_legacy(name) for name in ("a.pt", "b/a.PKL", "a.pickle.gz", "a.zarr", "pt")] == [True] * 3 + [
        False
    ] * 2


NPY = b"cnumpy._core.multiarray\n"
EMPTY_ARRAY = NPY + b"_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"cos\nsystem\n(S'touch ran'\ntR.", "holds os.system, which is code, not data"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x011\x85R.", "builtins.exec"),
        (b"(S'1'\nios\nsystem\n.", "os.system"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cnumpy\nfromfile\n(S'x'\ntR.", "numpy.fromfile"),
        (b"cnumpy\nndarray\n((I1000000000000\ntS'f8'\ntR.", "numpy.ndarray"),
        (b"cnumpy\nndarray\n(I9\ntR.", "numpy.ndarray"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "object of a class"),
        (b"cos\x1b[31m\nsys\ntem\n.", r"holds 'os\x1b[31m.sys', which"),
        (b"c" + b"a" * 500 + b"\nb\n.", "aaa..., which is code"),
        (b"ccopy_reg\n_reconstructor\n.", "copy_reg._reconstructor"),
        (b"c__builtin__\nset\n((lp0\ntR.", "a set, no sequence"),
        (b"\x80\x04\x8f.", "a set, which has no order"),
        (b"P1\n.", "outside the file"),
        (b"\x80\x05\x97.", "outside the file"),
        (b"\x80\x02\x82\x01.", "registered extension"),
        (
            NPY + b"_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'f8'\ntR.",
            "holds an array without content",
        ),
        (
            EMPTY_ARRAY + b"(I1\n(I1000000000000\ntcnumpy\ndtype\n(S'f8'\ntRI00\nS'abcd'\ntb.",
            "claims float64 [1000000000000], with 4 bytes",
        ),
        (NPY + b"_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.", "an array of a class of its own"),
        (
            EMPTY_ARRAY + b"(I1\n(I-1\nI-4\ntcnumpy\ndtype\n(S'i1'\ntRI00\nS'abcd'\ntb.",
            "damaged",
        ),
        (NPY + b"scalar\n(cnumpy\ndtype\n(S'f8'\ntRS'abc'\ntR.", "claims float64 []"),
        (
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
            "9,223,372,036,854,775,807 bytes are declared where 1 ",
        ),
        (b"\x80\x04B\xff\xff\xff\xffabc.", "bytes are declared where 4 "),
        (b"}(]K\x01u.", "dict with a key of type list"),
        (b"\x80\x06N.", "above 5"),
        (b"N.N.", "2 bytes follow"),
        (b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.", "damaged"),
        (b"K\x01K\x02b.", "neither an array nor a dtype"),
        *(
            (raw, "damaged")
            for raw in (b"a.", b"(.", b"t.", b"0.", b".", b"h\x00.", b"N", b"(K\x01d.", b"R.", b"b.")
        ),
        *(
            (raw, "damaged")
            for raw in (b"\x86.", b"]K\x01s.", b"Kn1.", b"S'a\n.", b"I1x\n.", b"\x93.", b"NN.", b"((.")
        ),
        (b"\x00\x01garbage", "no pickle (opcode 0x00)"),
        (b"", "is empty"),
        (b"\x93NUMPY\x01\x00", "a file of npy"),
        (b"\xfd7zXZ\x00", "a file of xz"),
        (b"\x1f\x8b\x08\x00cut", "gzip"),
    ],
)
def test_a_hostile_or_broken_pickle_ends_in_one_line(
    raw: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cached.pkl"
    path.write_bytes(raw)
    text = refused(lambda: read_legacy(path, ("x",)))
    assert text.startswith(f"{path}: ")
    assert said in text
    assert [file.name for file in tmp_path.iterdir()] == ["cached.pkl"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (np.array(["a"]), "an array of texts"),
        (np.array([b"a"]), "an array of byte strings"),
        (np.array([{}, None]), "an array of objects"),
        (np.array(["2020-01-01"], "M8[D]"), "an array of dates"),
        (np.zeros(2, [("a", "f4")]), "an array of records"),
        (np.zeros(2, np.longdouble), "a ndarray"),
        (np.str_("a"), "an array of texts"),
        (b"bytes", "bytes"),
    ],
)
def test_entries_that_are_no_numbers_are_refused_by_name_or_left_out(
    entry: Any, said: str, tmp_path: Path
) -> None:
    samples = [{"x": np.zeros(3), "other": entry}]
    path = pickled(tmp_path, samples)
    text = refused(lambda: read_legacy(path))
    assert f"field 'other': sample 0 holds {said}" in text
    assert "name the others: --fields x" in text
    assert list(read_legacy(path, ("x",)).schema()) == ["x"]


@pytest.mark.parametrize("key", ["a\nb", "\x1b[31m", "\u2028", "a " * 50_000])
def test_names_from_the_file_cannot_break_the_line(key: str, tmp_path: Path) -> None:
    path = pickled(tmp_path, [{key: np.zeros(3), "x": "text"}])
    for fields in (None, ("z",), (key,), (key, "x"), ("x",)):
        assert len(refused(lambda fields=fields: read_legacy(path, fields))) < 2_000


OBJECTS = [{1, 2}, [frozenset()], [{"x": Path("a")}], [{"x": torch.zeros(2)}], [Trap("x")]]


@pytest.mark.parametrize("content", OBJECTS)
def test_objects_are_refused(content: Any, tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = pickled(tmp_path, content, protocol)
        refused(lambda path=path: read_legacy(path))


def test_texts_copied_through_the_memo_take_no_memory() -> None:
    """A megabyte of text, encoded again with every ten bytes of file."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
    raw = b"\x80\x02c_codecs\nencode\nq\x000" + text + b"\x85q\x010]" + b"h\x00h\x01R0" * 100_000 + b"."
    assert "more of its texts than it holds" in refused(lambda: unpickled(raw, "f"))


def test_a_gzip_bomb_ends_where_half_of_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cached.pkl"
    path.write_bytes(gzip.compress(bytes(8 << 20)))
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4 << 20))
    assert "decompresses to over" in refused(lambda: read_legacy(path))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_flipped_or_cut_pickle_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    raw = bytearray(PICKLES[data.draw(st.sampled_from(range(len(PICKLES))))])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    with contextlib.suppress(LegacyFileError):
        unpickled(bytes(raw), "f")


PICKLES = [pickle.dumps([{"a": np.arange(3.0), "b": np.float32(1)}], protocol) for protocol in range(6)]


# ---- as a producer


LIKE = {
    "wave": Field(
        (12, 2), "float32", ("time", "channel"), units="V", coords={"time": Coord(np.arange(12) / 8, "s")}
    ),
    "f0": Field((), "float32", (), units="Hz", description="fundamental", keys={"range": 3}),
}


def test_a_recipes_schema_names_and_describes_the_fields(tmp_path: Path) -> None:
    samples = [(torch.ones(12, 2) * i, 55.5 * i) for i in range(3)]
    legacy = read_legacy(saved(tmp_path, samples), like=LIKE)
    wave, f0 = legacy.schema()["wave"], legacy.schema()["f0"]
    assert (wave.dims, wave.units, wave.coords["time"].units) == (("time", "channel"), "V", "s")
    assert (f0.units, f0.description, dict(f0.keys)) == ("Hz", "fundamental", {})
    with bake(legacy, tmp_path / "a.zarr", progress=False) as store:
        np.testing.assert_array_equal(store["f0"][:], np.float32([0, 55.5, 111]))
        np.testing.assert_array_equal(store["wave"][2], samples[2][0].numpy())


@pytest.mark.parametrize(
    ("samples", "fields", "said"),
    [
        (
            [(torch.ones(12, 2).double(), 1.0)],
            None,
            "holds float64 [12, 2], the recipe says float32 [12, 2]",
        ),
        ([(torch.ones(13, 2), 1.0)], None, "the file holds float32 [13, 2], the recipe says float32 [12, 2]"),
        ([(torch.ones(12, 2), 1j)], None, "field 'f0': the file holds complex128, the recipe says float32"),
        ([(torch.ones(12, 2), 1.0, 2.0)], None, "3 entries"),
        ([(torch.ones(12, 2), 1.0)], ("wave", "-"), "the recipe has field 'f0'"),
        ([(torch.ones(12, 2), 1.0, 2.0)], ("wave", "f0", "dB"), "field 'dB' is not the recipe's"),
        ([{"wave": torch.ones(12, 2)}], None, "no entry 'f0'"),
    ],
)
def test_a_file_that_does_not_fit_the_recipe_is_refused_with_both(
    samples: Any, fields: Any, said: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, samples)
    assert said in refused(lambda: read_legacy(path, fields, like=LIKE))


def test_the_keys_are_the_files_content_and_which_entry_is_which_field(tmp_path: Path) -> None:
    one, two = guides_samples(2, 10), [tuple(part + 1 for part in sample) for sample in guides_samples(2, 10)]
    path, other = saved(tmp_path, one), saved(tmp_path, two, "other.pt")
    keys = producer_keys(read_legacy(path, NAMES))[0]
    assert keys.shared["keys"]["depends_on"] == "unknown"
    assert compare(keys, producer_keys(read_legacy(path, NAMES))[0])
    assert not compare(keys, producer_keys(read_legacy(path, ("y", "x", "f0", "dB")))[0])
    assert not compare(keys, producer_keys(read_legacy(other, NAMES))[0])
    moved = path.rename(tmp_path / "moved.pt")
    assert compare(keys, producer_keys(read_legacy(moved, NAMES))[0])


def test_a_cache_is_pickled_by_its_path(tmp_path: Path) -> None:
    legacy = read_legacy(saved(tmp_path, guides_samples(2, 10)), NAMES)
    raw = pickle.dumps(legacy)
    assert len(raw) < 1000
    again = pickle.loads(raw)
    for name, array in produced(legacy).items():
        np.testing.assert_array_equal(array, produced(again)[name])


def test_batches_of_large_samples_are_small(tmp_path: Path) -> None:
    assert read_legacy(saved(tmp_path, torch.zeros(3, 10))).batch_size == 64
    assert read_legacy(saved(tmp_path, torch.zeros(1).expand(3, 1 << 22))).batch_size == 4  # of 16 MiB
    assert "over the limit of 1 GiB" in refused(
        lambda: read_legacy(saved(tmp_path, torch.zeros(1).expand(2, 1 << 40)))
    )


def test_nan_of_a_legacy_cache_is_data(tmp_path: Path) -> None:
    legacy = read_legacy(pickled(tmp_path, [{"x": np.array([1, np.nan])}]))
    with bake(legacy, tmp_path / "a.zarr", progress=False) as store:
        assert np.isnan(store["x"][0, 1])


def test_no_file_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no such file"):
        read_legacy(tmp_path / "cached.pt")
    assert "cannot be read" in refused(lambda: read_legacy(tmp_path))
    assert issubclass(LegacyFileError, ParbakeError)
