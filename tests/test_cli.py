"""The command line as a user meets it: results, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from parbake.cli import main
from parbake.store.store import open_store

RAMP = '''
from __future__ import annotations
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
import numpy as np
from parbake.producers.recipe import settle
from parbake.store.layout import Field

print("ramp was imported")


@dataclass(frozen=True)
class Ramp:
    """Straight lines of a slope.

    More that no list of commands shows.
    """

    num_samples: int = field(default=40, metadata={"help": "how many lines"})
    scale: float = field(default=1.0, metadata={"help": "slope"})
    levels: tuple[float, ...] = (0.0,)
    shape: Literal["line", "step"] = "line"
    reverse: bool = False
    source: Path | None = None
    order: Literal[1, 2] | None = None

    name = "ramp"
    version = 1

    def __post_init__(self):
        settle(self)

    def schema(self):
        return {"x": Field((1500, 1), "float32", ("time", "channel"), units="V", description="a line")}

    def invalidation_keys(self):
        return {"scale": self.scale, "levels": list(self.levels), "shape": self.shape, "order": self.order}

    def __len__(self):
        return self.num_samples

    def produce(self, start, stop, fields):
        print("producing", start)
        if (trap := os.environ.get("RAMP_TRAP")) and start >= 16:
            raise KeyboardInterrupt if trap == "interrupt" else ValueError("two\\nlines")
        lines = np.arange(1500) + np.arange(start, stop)[:, None]
        return {"x": (self.scale * lines)[..., None].astype("float32")}


@dataclass(frozen=True)
class Clash(Ramp):
    dry_run: bool = False


class Big(Ramp):
    """Slabs of one sample."""

    def schema(self):
        return {"x": Field((40_000_000,), "uint8", ("time",))}

    def produce(self, start, stop, fields):
        if os.environ.get("RAMP_TRAP") and start >= 2:
            raise ValueError("two\\nlines")
        return {"x": np.zeros((stop - start, 40_000_000), "uint8")}
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with ``ramp.py``, whose import no other test has seen."""
    (tmp_path / "ramp.py").write_text(RAMP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "ramp", raising=False)
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, args, prog_name="parbake")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def error_of(*args: str, code: int) -> str:
    """The one line on stderr of a run that fails, and prints no result."""
    result = run(*args, code=code)
    assert result.stdout == ""
    told = [line for line in result.stderr.splitlines() if not line.startswith(("producing ", "ramp was "))]
    assert len(told) == 1, result.stderr
    assert told[0].startswith("parbake: error: ")
    return told[0].removeprefix("parbake: error: ")


def result_of(*args: str, code: int = 0) -> Any:
    return json.loads(run(*args, "--json", code=code).stdout)


def python(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
        **options,
    )


def baked(path: str = "a.zarr", *options: str) -> str:
    run("build", "ramp:Ramp", "-o", path, "--batch-size", "8", *options)
    return path


def flip_a_bit(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


# ---- build


def test_build_bakes_and_says_so_in_one_line_on_stdout() -> None:
    result = run("build", "ramp:Ramp", "-o", "a.zarr", "--num-samples", "20", "--scale", "3")
    (line,) = result.stdout.splitlines()
    assert line.startswith("a.zarr: 20 samples, ")
    assert "baked in" in line
    with open_store("a.zarr") as store:
        assert store["x"].shape == (20, 1500, 1)
        np.testing.assert_array_equal(store["x"][19, :, 0], 3 * (np.arange(1500.0, dtype="f4") + 19))
        assert store.provenance["bakes"][0]["command"] == (
            "parbake build ramp:Ramp -o a.zarr --num-samples 20 --scale 3"
        )


def test_what_the_producer_prints_is_no_result() -> None:
    result = run("build", "ramp:Ramp", "-o", "a.zarr", "--json")
    assert "producing 0" in result.stderr
    assert "ramp was imported" in result.stderr
    assert json.loads(result.stdout)["samples"] == 40


def test_build_again_bakes_nothing_and_more_samples_only_those() -> None:
    baked()
    assert "nothing left to bake" in run("build", "ramp:Ramp", "-o", "a.zarr").stdout
    grown = result_of("build", "ramp:Ramp", "-o", "a.zarr", "--num-samples", "100")
    assert (grown["samples"], grown["samples_baked"]) == (100, 60)


def test_build_needs_one_place_to_bake_to() -> None:
    assert "-o PATH or --cache DIR" in error_of("build", "ramp:Ramp", code=2)
    assert "not both" in error_of("build", "ramp:Ramp", "-o", "a.zarr", "--cache", "c", code=2)


def test_a_cache_entry_is_named_by_producer_and_keys() -> None:
    first = result_of("build", "ramp:Ramp", "--cache", "c/d", "--scale", "2")
    other = result_of("build", "ramp:Ramp", "--cache", "c/d", "--scale", "3")
    for made in (first, other):
        assert re.fullmatch(r"ramp-[0-9a-f]{12}\.zarr", Path(made["path"]).name)
    assert sorted(p.name for p in Path("c/d").iterdir()) == sorted(
        Path(made["path"]).name for made in (first, other)
    )


def test_options_of_each_kind_reach_the_producer() -> None:
    run(
        *(
            "build",
            "ramp:Ramp",
            "-o",
            "a.zarr",
            "--num-samples",
            "4",
            "--levels",
            "-36",
            "--levels",
            "-18,-6.5",
        ),
        *("--shape", "step", "--reverse", "--source", "-x,y", "--order", "2"),
    )
    with open_store("a.zarr") as store:
        assert store.provenance["recipe"]["params"] == {
            "num_samples": 4,
            "scale": 1.0,
            "levels": [-36.0, -18.0, -6.5],
            "shape": "step",
            "reverse": True,
            "source": str(Path("-x,y").absolute()),
            "order": 2,
        }


def test_help_shows_the_producers_options_with_defaults() -> None:
    shown = run("build", "ramp:Ramp", "--help").stdout
    assert "Straight lines of a slope." in shown
    for part in (
        "--num-samples INTEGER",
        "how many lines  [default: 40]",
        "--levels FLOAT,...",
        "[line|step]",
        "--reverse / --no-reverse",
        "--source PATH",
        "Options of every bake",
        "--dry-run",
    ):
        assert part in shown
    assert "sine-teacher" in run("build", "--help").stdout


def test_a_recipe_gives_defaults_that_the_command_line_overrides() -> None:
    Path("r.yaml").write_text(
        "producer: ramp:Ramp\nparams: {scale: 2, num_samples: 6}\n"
        "store: {path: from-recipe.zarr, codec: zstd}\n"
    )
    assert "[default: 2]" in run("build", "r.yaml", "--help").stdout
    run("build", "r.yaml")
    run("build", "r.yaml", "--scale", "5", "-o", "mine.zarr", "--codec", "raw")
    run("build", "r.yaml", "--cache", "cache")
    with open_store("from-recipe.zarr") as store:
        assert (store.samples, store.fields["x"].layout.codec, float(store["x"][0, 1, 0])) == (6, "zstd", 2)
    with open_store("mine.zarr") as store:
        assert (store.samples, store.fields["x"].layout.codec, float(store["x"][0, 1, 0])) == (6, "raw", 5)
    assert len(list(Path("cache").glob("ramp-*.zarr"))) == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["ramp:Ramp", "--scael", "2"], "--scale"),
        (["ramp:Ramp", "--scale", "two"], "scale: 'two' is not a number"),
        (["ramp:Ramp", "--shape", "circle"], "'line', 'step'"),
        (["ramp:Ramp", "--batch-size", "0"], "--batch-size"),
        (["ramp:Ramp", "--codec", "gzip"], "lz4"),
        (["ramp:Clash"], "field 'dry_run' would make the option --dry-run"),
        (["ramp:Rump"], "'Ramp'"),
        (["rampp:Ramp"], "rampp"),
        (["sine-techer"], "'sine-teacher'"),
        (["nothing.yaml"], "nothing.yaml"),
        (["ramp.py"], "name the class in it: ramp:CLASS"),
        (["bad.yaml"], "bad.yaml: unknown name 'parms'"),
        (["badparam.yaml"], "'scael' (did you mean 'scale'?)"),
        ([], "missing PRODUCER"),
        (["--scale", "2", "ramp:Ramp"], "name the PRODUCER before its options"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_a_usage_error(args: list[str], says: str) -> None:
    Path("bad.yaml").write_text("producer: ramp:Ramp\nparms: {scale: 2}\n")
    Path("badparam.yaml").write_text("producer: ramp:Ramp\nparams: {scael: 2}\n")
    where = ["-o", "a.zarr"] if args and args[0][0] != "-" else []
    assert says in error_of("build", *args, *where, code=2)
    assert not Path("a.zarr").exists()


def test_a_stale_store_is_left_alone_until_rebuild_is_said() -> None:
    baked()
    said = error_of("build", "ramp:Ramp", "-o", "a.zarr", "--scale", "2", code=1)
    assert "scale: 1.0 -> 2.0" in said
    with open_store("a.zarr") as store:
        assert store["x"][0, 1, 0] == 1
    run("build", "ramp:Ramp", "-o", "a.zarr", "--scale", "2", "--rebuild")
    with open_store("a.zarr") as store:
        assert store["x"][0, 1, 0] == 2


def test_a_path_that_is_no_store_is_not_baked_over() -> None:
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("precious")
    for path in ("notes", "ramp.py"):
        assert path in error_of("build", "ramp:Ramp", "-o", path, code=1)
    assert Path("notes/mine.txt").read_text() == "precious"
    assert Path("ramp.py").read_text() == RAMP


def test_a_path_that_cannot_be_written_is_one_line() -> None:
    assert "ramp.py" in error_of("build", "ramp:Ramp", "-o", "ramp.py/a.zarr", code=2)


def test_a_producer_that_raises_leaves_a_bake_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("build", "ramp:Big", "-o", "a.zarr", "--num-samples", "4", "--batch-size", "1")
    monkeypatch.setenv("RAMP_TRAP", "error")
    assert "two lines" in error_of(*arguments, code=1)
    unfinished = run("inspect", "a.zarr", code=1)
    assert "2 of 4 slabs" in unfinished.stdout
    assert "parbake build ramp:Big -o a.zarr" in unfinished.stdout
    (bake,) = result_of("inspect", "a.zarr", code=1)["unfinished"]
    assert (bake["slabs_done"], bake["slabs"]) == (2, 4)
    for verb in ("check", "verify"):
        assert "2 of 4 slabs" in error_of(verb, "a.zarr", code=1)
    assert "unfinished" in run("ls", ".").stdout
    (listed,) = result_of("ls", ".")["stores"]
    assert (listed["state"], listed["slabs"], listed["producer"]) == ("unfinished", [2, 4], "ramp")

    monkeypatch.delenv("RAMP_TRAP")
    assert result_of(*arguments)["samples_baked"] == 2
    with open_store("a.zarr") as store:
        assert store.samples == 4


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMP_TRAP", "interrupt")
    said = error_of("build", "ramp:Ramp", "-o", "a.zarr", "--batch-size", "8", code=130)
    assert said.startswith("interrupted")


def test_debug_shows_where_an_error_arose() -> None:
    result = CliRunner().invoke(main, ["--debug", "inspect", "nowhere.zarr"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "StoreNotFoundError" in result.stderr


def test_an_error_that_nobody_foresaw_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object, **_: object) -> None:
        raise ZeroDivisionError("a bug\nof ours")

    monkeypatch.setattr("parbake.store.store.open_store", broken)
    said = error_of("inspect", "a.zarr", code=1)
    assert said.startswith("unexpected ZeroDivisionError: a bug of ours")


def test_a_dry_run_predicts_and_writes_nothing() -> None:
    before = sorted(Path().iterdir())
    predicted = result_of("build", "ramp:Ramp", "-o", "a.zarr", "--dry-run")
    assert predicted["samples"] == predicted["missing_samples"] == 40
    assert predicted["nbytes_raw"] == 40 * 6000
    assert predicted["fits"] is True
    shown = run("build", "ramp:Ramp", "--cache", "new", "--dry-run").stdout
    for word in (
        "raw: 234 KiB",
        "stored, about: ",
        "ratio",
        "time, about: ",
        "free disk: ",
        "random sample: ",
    ):
        assert word in shown
    assert [p for p in sorted(Path().iterdir()) if p.name != "__pycache__"] == [
        p for p in before if p.name != "__pycache__"
    ]


def test_a_dry_run_that_does_not_fit_answers_no() -> None:
    huge = (
        "build",
        "ramp:Big",
        "-o",
        "a.zarr",
        "--dry-run",
        "--num-samples",
        str(10**12),
        "--batch-size",
        "1",
    )
    assert "DOES NOT FIT" in run(*huge, code=1).stdout


def test_workers_bake_the_same_store() -> None:
    alone, shared = baked("a.zarr"), "b.zarr"
    made = python("-m", "parbake", "build", "ramp:Ramp", "-o", shared, "--batch-size", "8", "--workers", "2")
    assert made.returncode == 0, made.stderr
    with open_store(alone) as one, open_store(shared) as two:
        np.testing.assert_array_equal(one["x"][:], two["x"][:])


# ---- inspect


def test_inspect_shows_a_store_in_80_columns_without_colour() -> None:
    shown = run("inspect", baked()).stdout
    for part in (
        "a.zarr: 40 samples of ramp, ",
        "sample 40, time 1,500, channel 1",
        "float32",
        "lz4",
        "a line",
        "scale: 1.0",
        "levels: [0.0]",
        "command: parbake build ramp:Ramp -o a.zarr --batch-size 8",
        "1538",  # the largest value
    ):
        assert part in shown
    assert "\x1b" not in shown
    tables = shown[: shown.index("\nKeys")].splitlines()
    assert max(map(len, tables)) <= 80


def test_inspect_json_holds_it_all() -> None:
    shown = result_of("inspect", baked())
    assert shown["state"] == "complete"
    assert shown["samples"] == 40
    assert shown["fields"]["x"]["shape"] == [1500, 1]
    assert shown["fields"]["x"]["units"] == "V"
    assert shown["keys"]["shared"]["keys"]["scale"] == 1.0
    assert shown["statistics"]["x"]["max"] == 1538
    assert shown["provenance"]["recipe"]["producer"] == "ramp:Ramp"
    assert shown["ratio"] == pytest.approx(40 * 6000 / shown["nbytes_stored"])


@pytest.mark.parametrize("verb", ["inspect", "check", "verify"])
def test_a_path_without_a_store_is_one_line(verb: str) -> None:
    Path("empty").mkdir()
    for path in ("nowhere.zarr", "ramp.py", "empty"):
        assert path in error_of(verb, path, code=1)


def test_metadata_that_was_changed_is_one_line() -> None:
    path = Path(baked()) / "zarr.json"
    path.write_text(path.read_text().replace('"parbake_samples":40', '"parbake_samples":39'))
    for verb in ("inspect", "check", "verify"):
        assert "seal" in error_of(verb, "a.zarr", code=1)
    assert "broken" in run("ls", ".").stdout


# ---- check


def test_check_says_fresh_or_which_key_changed() -> None:
    baked()
    assert run("check", "a.zarr", "ramp:Ramp").stdout == "fresh\n"
    stale = run("check", "a.zarr", "ramp:Ramp", "--scale", "2", "--levels", "-3", code=1)
    assert sorted(stale.stdout.splitlines()) == ["levels[0]: 0.0 -> -3.0", "scale: 1.0 -> 2.0"]
    assert result_of("check", "a.zarr", "ramp:Ramp", "--scale", "2", code=1) == {
        "path": "a.zarr",
        "fresh": False,
        "changes": [{"field": None, "path": "scale", "stored": 1.0, "wanted": 2.0}],
    }


def test_check_takes_a_recipe_file_and_options_over_it() -> None:
    Path("r.yaml").write_text("producer: ramp:Ramp\nparams: {scale: 2, num_samples: 6}\n")
    run("build", "r.yaml", "-o", "a.zarr")
    run("check", "a.zarr", "r.yaml")
    assert run("check", "a.zarr", "r.yaml", "--scale", "1", code=1).stdout == "scale: 2.0 -> 1.0\n"


def test_more_samples_than_baked_are_a_change() -> None:
    baked()
    run("check", "a.zarr", "ramp:Ramp", "--num-samples", "10")
    shown = run("check", "a.zarr", "ramp:Ramp", "--num-samples", "41", code=1).stdout
    assert shown == "samples: 40 -> 41\n"


def test_check_never_imports_what_a_store_names() -> None:
    baked()
    sys.modules.pop("ramp")
    said = error_of("check", "a.zarr", code=2)
    assert "ramp:Ramp" in said
    assert "parbake check a.zarr RECIPE" in said
    assert "ramp" not in sys.modules


def test_a_misspelt_option_of_check_is_a_usage_error() -> None:
    baked()
    assert "--jsn" in error_of("check", "a.zarr", "--jsn", code=2)
    assert "--scale" in error_of("check", "a.zarr", "ramp:Ramp", "--scael", "2", code=2)


def sine(path: str, *options: str) -> None:
    run("build", "sine-teacher", "-o", path, "--num-samples", "3", "--duration", "0.01", *options)


def test_a_store_of_a_built_in_producer_knows_its_recipe() -> None:
    sine("s.zarr")
    assert run("check", "s.zarr").stdout == "fresh\n"
    stale = run(
        "check",
        "s.zarr",
        "sine-teacher",
        "--duration",
        "0.01",
        "--num-samples",
        "3",
        "--midi-max",
        "99",
        code=1,
    )
    assert stale.stdout == "midi_max: 127.0 -> 99.0\n"


# ---- verify


def test_verify_says_whole_or_what_is_damaged_and_repairs_it() -> None:
    baked()
    assert "whole" in run("verify", "a.zarr").stdout
    shard = Path("a.zarr/x/c/0/0/0")
    before = shard.read_bytes()
    flip_a_bit(shard, 200)

    found = run("verify", "a.zarr", code=1)
    (line,) = found.stdout.splitlines()
    assert line.startswith("x/c/0/0/0: field 'x', samples 0-")
    assert "run 'parbake verify a.zarr --repair RECIPE'" in found.stderr
    report = result_of("verify", "a.zarr", code=1)
    assert report["whole"] is False
    assert report["damaged"][0]["file"] == "x/c/0/0/0"

    assert "ramp:Ramp" in run("verify", "a.zarr", "--repair", code=2).stderr
    mended = run("verify", "a.zarr", "--repair", "ramp:Ramp --scale 1")
    assert "1 damaged part repaired" in mended.stdout
    assert "whole" in mended.stdout
    assert shard.read_bytes() == before
    run("verify", "a.zarr")


def test_repair_json_is_one_object() -> None:
    baked()
    assert result_of("verify", "a.zarr", "--repair", "ramp:Ramp")["repaired"] == []
    flip_a_bit(Path("a.zarr/x/c/0/0/0"), 200)
    report = result_of("verify", "a.zarr", "--repair", "ramp:Ramp")
    assert report["whole"] is True
    assert [damage["field"] for damage in report["repaired"]] == ["x"]


@pytest.mark.parametrize("order", [["s.zarr", "--repair"], ["--repair", "s.zarr"]])
def test_repair_of_a_built_in_producer_needs_no_recipe(order: list[str]) -> None:
    sine("s.zarr")
    shard = next(p for p in Path("s.zarr/y/c").rglob("*") if p.is_file())
    before = shard.read_bytes()
    flip_a_bit(shard, 100)
    assert "--repair RECIPE" not in run("verify", "s.zarr", code=1).stderr
    run("verify", *order)
    assert shard.read_bytes() == before


def test_a_repair_recipe_with_an_open_quote_is_a_usage_error() -> None:
    baked()
    assert "quotation" in error_of("verify", "a.zarr", "--repair", "ramp:Ramp '", code=2)


def test_what_a_store_says_of_itself_cannot_steer_the_terminal() -> None:
    text = Path("ramp.py").read_text()
    Path("ramp.py").write_text(text.replace('description="a line"', 'description="a \\x1b[31mred\\x07 line"'))
    shown = run("inspect", baked()).stdout
    assert "x: a \\x1b[31mred\\x07 line" in shown
    assert "\x1b" not in shown


def test_a_repair_with_another_recipe_is_refused() -> None:
    baked()
    shard = Path("a.zarr/x/c/0/0/0")
    flip_a_bit(shard, 200)
    damaged = shard.read_bytes()
    refused = run("verify", "a.zarr", "--repair", "ramp:Ramp --scale 9", code=1)
    assert "scale: 1.0 -> 9.0" in refused.stderr
    assert shard.read_bytes() == damaged


# ---- ls


def test_ls_lists_stores_and_nothing_else() -> None:
    baked("b.zarr", "--num-samples", "7")
    baked("a.zarr")
    shown = run("ls", ".").stdout
    assert shown.index("a.zarr") < shown.index("b.zarr")
    assert "ramp.py" not in shown
    assert ".: 2 stores, " in shown.splitlines()[-1]
    assert max(map(len, shown.splitlines())) <= 80
    listed = result_of("ls", ".")
    assert [(s["path"], s["samples"], s["state"]) for s in listed["stores"]] == [
        ("a.zarr", 40, "complete"),
        ("b.zarr", 7, "complete"),
    ]
    on_disk = sum(p.stat().st_size for p in Path().glob("*.zarr/**/*") if p.is_file())
    assert listed["nbytes_stored"] == on_disk


def test_ls_shows_the_cache_folder_unless_told() -> None:
    assert run("ls").stdout == f"{Path('home').absolute()}: 0 stores, 0 B\n"
    run("build", "ramp:Ramp", "--cache", "home")
    assert result_of("ls")["stores"][0]["producer"] == "ramp"
    assert "nowhere" in error_of("ls", "nowhere", code=1)


def test_to_list_a_store_is_not_to_use_it() -> None:
    root = Path(baked()) / "zarr.json"
    stat = root.stat()
    long_ago = stat.st_mtime_ns - 10**9
    os.utime(root, ns=(long_ago, stat.st_mtime_ns))
    run("ls", ".")
    assert root.stat().st_atime_ns == long_ago


# ---- as a process

ASK = """
import sys
from parbake.cli import main
try:
    main({args})
finally:
    print({names} & sys.modules.keys(), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["build", "--help"],
        ["build", "sine-teacher", "--help"],
        ["inspect", "a.zarr"],
        ["ls", "."],
        ["verify", "a.zarr"],
        ["check", "--help"],
    ],
)
def test_torch_and_zarr_are_not_imported_to_answer(args: list[str]) -> None:
    baked()
    answered = python("-c", ASK.format(args=args, names={"torch", "zarr", "scipy", "xarray", "matplotlib"}))
    assert answered.returncode == 0, answered.stderr
    assert answered.stderr.splitlines()[-1] == "set()"


def test_help_imports_nothing_that_takes_long() -> None:
    names = {"torch", "numpy", "rich", "pydantic", "zarr"}
    assert python("-c", ASK.format(args=["--help"], names=names)).stderr.splitlines()[-1] == "set()"


def test_a_reader_that_goes_away_is_no_error() -> None:
    baked()
    read, write = os.pipe()
    os.close(read)
    root = str(Path(__file__).resolve().parents[1])
    gone = subprocess.run(
        [sys.executable, "-m", "parbake", "inspect", "a.zarr"],
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        timeout=60,
    )
    os.close(write)
    assert gone.stderr == b""


def test_module_and_shell_completion_answer() -> None:
    assert python("-m", "parbake", "--version").stdout.startswith("parbake, version ")
    root = str(Path(__file__).resolve().parents[1])
    for words, wanted in (
        ("parbake in", "inspect"),
        ("parbake build ramp:Ramp --sc", "--scale"),
        ("parbake build ", "plain,sine-teacher"),
        ("parbake build rec", "file,rec"),
        ("parbake build --", "--help"),
    ):
        env = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_PARBAKE_COMPLETE": "bash_complete"}
        completed = subprocess.run(
            [sys.executable, "-m", "parbake"],
            capture_output=True,
            text=True,
            env={**os.environ, **env, "PYTHONPATH": root},
            timeout=60,
        )
        assert wanted in completed.stdout, completed.stderr
        assert "Traceback" not in completed.stderr
