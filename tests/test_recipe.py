"""Recipes: names, parameters and their types; whatever is wrong is one line."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from bakery import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.errors import RecipeError
from parbake.producers.audio.sine import SineTeacher
from parbake.producers.recipe import (
    BUILTIN_PRODUCERS,
    load_recipe,
    make_producer,
    producer_class,
    recipe_of,
    settle,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@dataclass(frozen=True)
class Ramp:
    name: ClassVar[str] = "ramp"
    version: ClassVar[int] = 1

    slope: float = 1
    count: int = 3
    file: Path | None = None
    seed: int | Literal["fresh"] = 0
    levels: tuple[float, ...] = (1,)
    quiet: bool = False
    table: np.ndarray | None = None

    def __post_init__(self) -> None:
        settle(self)

    def schema(self) -> dict[str, Any]:
        return {}

    def invalidation_keys(self) -> dict[str, Any]:
        return {}

    def __len__(self) -> int:
        return self.count

    def produce(self, start: int, stop: int, fields: Any) -> dict[str, Any]:
        return {}


class Plain:
    """A producer that is no dataclass and coerces nothing."""

    name = "plain"
    version = 1

    def __init__(self, count: int, *, slope: float = 1.0) -> None:
        if count < 0:
            raise ValueError("a count\nbelow zero")
        self.count, self.slope = count, slope

    schema = Ramp.schema
    invalidation_keys = Ramp.invalidation_keys
    __len__ = Ramp.__len__
    produce = Ramp.produce


# ---- values


@settings(deadline=None)
@given(st.integers(-(2**53), 2**53), FINITE, st.lists(FINITE, max_size=4))
def test_values_and_their_text_settle_to_the_same_declared_types(n: int, x: float, xs: list[float]) -> None:
    plain = Ramp(slope=n, count=n, seed=n, levels=xs)  # type: ignore[arg-type]
    text = Ramp(slope=repr(x), count=str(n), seed=str(n), levels=[repr(v) for v in xs])  # type: ignore[arg-type]
    assert (type(plain.slope), plain.slope) == (float, float(n))
    assert (type(plain.count), plain.count) == (int, n)
    assert plain.levels == tuple(xs)
    assert all(type(v) is float for v in plain.levels)
    assert text == Ramp(slope=x, count=n, seed=n, levels=tuple(xs))


@settings(deadline=None)
@given(FINITE.filter(lambda x: not x.is_integer()))
def test_a_fraction_is_never_rounded_to_a_whole_number(x: float) -> None:
    for value in (x, repr(x)):
        text = refusal(lambda value=value: Ramp(count=value))
        assert text == f"ramp: count: {value!r} is not a whole number (int)"


@pytest.mark.parametrize("truth", [True, False, np.True_])
def test_true_and_false_are_not_numbers(truth: Any) -> None:
    for name in ("slope", "count", "seed"):
        assert refusal(lambda name=name: Ramp(**{name: truth})).startswith(f"ramp: {name}: ")
    assert "levels" in refusal(lambda: Ramp(levels=(1.0, truth)))
    assert Ramp(quiet=truth).quiet is bool(truth)


@pytest.mark.parametrize("value", ["1", "yes", 1, 0.0, None])
def test_only_true_and_false_are_true_or_false(value: Any) -> None:
    assert refusal(lambda: Ramp(quiet=value)) == f"ramp: quiet: {value!r} is not true or false (bool)"


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"slope": "abc"}, "ramp: slope: 'abc' is not a number (float)"),
        ({"slope": None}, "ramp: slope: None is not a number (float)"),
        ({"slope": "1\n2"}, r"ramp: slope: '1\n2' is not a number (float)"),
        ({"file": 3}, "ramp: file: 3 is not a path or empty"),
        ({"seed": "fersh"}, "ramp: seed: 'fersh' is not a whole number (int) or 'fresh'"),
        ({"levels": "1"}, "ramp: levels: '1' is not a list, each a number (float)"),
        ({"table": [1]}, "ramp: table: [1] is not ndarray or empty"),
        ({"slop": 1}, "ramp: unknown name 'slop' (did you mean 'slope'?)"),
        ({"Slope": 1}, "ramp: unknown name 'Slope' (did you mean 'slope'?)"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_wanted(params: dict[str, Any], text: str) -> None:
    assert refusal(lambda: make_producer(Ramp, params)) == text


def test_unions_paths_and_arrays_are_taken_as_declared() -> None:
    table = np.zeros(3)
    ramp = Ramp(file="a/b.json", seed="fresh", slope=np.float32(0.5), table=table)  # type: ignore[arg-type]
    assert (ramp.file, ramp.seed) == (Path("a/b.json"), "fresh")
    assert type(ramp.slope) is float
    assert ramp.table is table


def test_long_values_are_cut_in_the_message() -> None:
    assert len(refusal(lambda: Ramp(slope="x" * 10_000))) < 120  # type: ignore[arg-type]


def test_a_class_that_settles_nothing_gets_its_declared_types() -> None:
    plain: Any = make_producer(Plain, {"count": "4", "slope": 2})
    assert (plain.count, type(plain.slope)) == (4, float)
    assert refusal(lambda: make_producer(Plain, {})) == "plain: count: missing, and it has no default"
    assert refusal(lambda: make_producer(Plain, {"count": -1})) == "plain: ValueError: a count below zero"


def test_annotations_that_cannot_be_evaluated_are_a_recipe_error() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: Nowhere  # type: ignore[name-defined]  # noqa: F821

        def __post_init__(self) -> None:
            settle(self)

    assert "Odd: its annotations cannot be evaluated" in refusal(lambda: Odd(1))


# ---- producers by name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, whose modules and place in sys.path are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def test_every_built_in_name_gives_its_class_of_that_name() -> None:
    for name in BUILTIN_PRODUCERS:
        assert producer_class(name).name == name  # type: ignore[attr-defined]


def test_a_class_in_the_current_folder_is_found_and_made_again_from_its_recipe(folder: Path) -> None:
    (folder / "my_ramp.py").write_text(
        "from dataclasses import dataclass\n"
        "from tests_ramp_base import Ramp\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Ramp):\n"
        "    extra: int = 0\n"
    )
    sys.modules["tests_ramp_base"] = sys.modules[__name__]
    mine = make_producer(producer_class("my_ramp:Mine"), {"file": "a.json", "extra": "2"})
    record = recipe_of(mine)
    assert record is not None
    assert record["producer"] == "my_ramp:Mine"
    assert record["params"]["file"] == str(folder / "a.json")
    assert record["params"]["extra"] == 2
    assert recipe_of(make_producer(producer_class(record["producer"]), record["params"])) == record


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("sine-teachr", "unknown producer 'sine-teachr' (did you mean 'sine-teacher'?)"),
        ("sine_teacher", "unknown producer 'sine_teacher' (did you mean 'sine-teacher'?)"),
        ("zzz", "unknown producer 'zzz' (there is mesh, sine-teacher, teacher)"),
        ("../x:Y", "'../x:Y': '../x' is not a module's name"),
        ("no_such_module:Y", "no_such_module:Y: no module 'no_such_module' in "),
        ("broken:Y", "broken:Y: importing broken failed: ValueError: two lines"),
        ("leaves:Y", "leaves:Y: importing leaves failed: SystemExit: 3"),
        ("needs:Y", "needs:Y: importing needs failed: No module named 'no_such_thing'"),
        ("whole:Prodcer", "whole:Prodcer: whole has no 'Prodcer' (did you mean 'Producer'?)"),
        ("whole:function", "whole:function: function is a function, not a class"),
        (
            "whole:Producer",
            "whole:Producer: Producer is not a producer; it lacks schema, invalidation_keys, produce",
        ),
    ],
)
def test_a_producer_that_cannot_be_had_is_said_in_one_line(folder: Path, spec: str, text: str) -> None:
    (folder / "broken.py").write_text("raise ValueError('two\\nlines')")
    (folder / "leaves.py").write_text("raise SystemExit(3)")
    (folder / "needs.py").write_text("import no_such_thing")
    (folder / "whole.py").write_text(
        "class Producer:\n    def __len__(self): return 1\ndef function(): pass\n"
    )
    assert refusal(lambda: producer_class(spec)).startswith(text)


def test_an_error_of_the_users_module_is_chained(folder: Path) -> None:
    (folder / "breaks.py").write_text("1 / 0")
    with pytest.raises(RecipeError) as caught:
        producer_class("breaks:X")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_producer_of_plain_values_is_recorded_by_its_built_in_name_and_equals_its_copy() -> None:
    teacher = SineTeacher(duration=0.01, levels_db=(-36, -18), seed="fresh", db_min=-60)
    record = recipe_of(teacher)
    assert record is not None
    assert record["producer"] == "sine-teacher"
    assert record["params"]["levels_db"] == [-36.0, -18.0]
    assert make_producer(producer_class(record["producer"]), record["params"]) == teacher


def test_what_cannot_be_made_again_by_name_has_no_recipe() -> None:
    @dataclass(frozen=True)
    class Local(Ramp):
        pass

    assert recipe_of(Local()) is None
    assert recipe_of(Ramp(table=np.zeros(2))) is None
    assert recipe_of(Plain(1)) is None
    assert recipe_of(Ramp) is None


# ---- recipe files


def test_a_recipe_file_is_yaml_1_2(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "producer: sine-teacher\nparams:\n  duration: 1e-3\n  seed: 0o17\n  device: no\n"
        "store: {codec: zstd, batch_size: 8, workers: 2, path: out/a.zarr}\n"
    )
    recipe = load_recipe(file)
    assert recipe.producer == "sine-teacher"
    assert recipe.params == {"duration": 0.001, "seed": 15, "device": "no"}
    assert recipe.store == {"codec": "zstd", "batch_size": 8, "workers": 2, "path": Path("out/a.zarr")}


def test_params_and_store_may_be_absent_or_empty(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for text in ("producer: x", "producer: x\nparams:\nstore:\n"):
        file.write_text(text)
        recipe = load_recipe(file)
        assert (recipe.producer, recipe.params, recipe.store) == ("x", {}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("producer: x\nparms: {}", "a.yaml: unknown name 'parms' (did you mean 'params'?)"),
        ("producer: x\nstore: {batchsize: 1}", "a.yaml: store: unknown name 'batchsize' (did you mean"),
        ("producer: x\nstore: {workers: 1.5}", "a.yaml: store: workers: 1.5 is not a whole number (int)"),
        ("producer: x\nstore: {workers: true}", "a.yaml: store: workers: True is not a whole number (int)"),
        ("producer: [x]", "a.yaml: producer: ['x'] is not a name or module:Class"),
        ("producer: x\nparams: 3", "a.yaml: params: 3 is not a list of 'name: value' lines"),
        ("producer: x\nparams: {1: 2}", "a.yaml: params: {1: 2} is not a list of 'name: value' lines"),
        ("params: {}", "a.yaml: not a recipe; it needs a line 'producer: NAME'"),
        ("", "a.yaml: not a recipe; it needs a line 'producer: NAME'"),
        ("producer: x\nparams: [", "a.yaml: line 2: not YAML: "),
        ("producer: x\nproducer: y", "a.yaml: line 2: not YAML: "),
        ("producer: !!python/name:os.system ''", "a.yaml: line 1: not YAML: "),
        ("producer: x\nparams: {a: 2025-99-99}", "a.yaml: not YAML: "),
        (b"producer: \xff\xfe", "a.yaml: not YAML: "),
    ],
)
def test_a_faulty_recipe_is_said_in_one_line(
    text: str | bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refusal(lambda: load_recipe("a.yaml")).startswith(message)


def test_an_absent_recipe_file_is_a_recipe_error(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(lambda: load_recipe(tmp_path / "no.yaml"))
