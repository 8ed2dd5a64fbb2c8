"""The report of a store, and what ``inspect --plot`` and ``--html`` write: whole, self-contained, escaped."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from test_plot import SCALARS, SCHEMA, baked, flip, numbers, tone

from parbake.browse.report import picked, report
from parbake.cli import main
from parbake.errors import RecipeError
from parbake.producers.bake import bake
from parbake.producers.function import from_function
from parbake.store.layout import Field
from parbake.store.store import Store, open_store

VOID = {"meta", "img", "br", "hr", "col", "link", "input"}


class Page(HTMLParser):
    """The elements of a page; fails where they are not nested as they should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID and not (self._open and self._open[-1] == "svg"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return baked(tmp_path_factory.mktemp("tones") / "tones.zarr", tone, 3, SCHEMA, codec="raw")


@pytest.fixture(scope="module")
def page(tones: Store) -> str:
    return report(tones, samples=2)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def pictures(page: str) -> list[Image.Image]:
    found = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_a_report_has_pictures_distributions_keys_provenance_and_code(page: str, tones: Store) -> None:
    parsed = Page(page)
    for heading in ("Keys", "Provenance", "Samples", "Distributions", "Read it again"):
        assert heading in parsed.text
    assert [image.width for image in pictures(page)] == [1600, 1600, 1600]  # two samples, one of scalars
    assert tones.digest in parsed.text
    assert f"open_store('{tones.path}')" in parsed.text
    assert len(page) < 1_000_000


def test_the_code_of_a_report_runs(page: str) -> None:
    code = re.search(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)
    assert code is not None
    named: dict[str, object] = {}
    exec(html.unescape(code[1]), named)
    assert isinstance(named["store"], Store)


def test_a_report_runs_nothing_and_fetches_nothing(page: str) -> None:
    parsed = Page(page)
    assert {"script", "link", "iframe", "object", "embed"} & set(parsed.tags) == set()
    for name, value in parsed.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "srcset", "data", "action"):
            assert value.startswith(("data:image/", "#")), value
    assert not re.search(r"url\(\s*['\"]?(?!data:|#)", page)
    assert "default-src 'none'" in page


def test_what_a_store_says_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</style></title><script>alert(1)</script><img src=x onerror='alert(2)'>&amp;\""
    folder = tmp_path / evil.replace("/", "_")
    field = Field((), "f8", (), units=evil, description=evil)
    producer = from_function(
        lambda i: {"v": np.float64(i)}, 3, schema={"v": field}, invalidation_keys={evil: evil}
    )
    with bake(producer, folder, progress=False) as store:
        page = report(store)
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert {name for name, _ in parsed.attributes if name.startswith("on")} == set()
    assert "<script>alert(1)" in parsed.text  # as text


def test_samples_go_from_the_lowest_f0_to_the_highest(tmp_path: Path) -> None:
    def fn(i: int) -> dict[str, np.float64]:
        return {"f0": np.float64(np.nan if i == 4 else 100 + (i * 7) % 10)}

    field = Field((), "f8", (), units="Hz", allow_nan=True)
    with baked(tmp_path / "s.zarr", fn, 10, {"f0": field}) as store:
        numbers_, how = picked(store, 3)
        f0 = store["f0"][numbers_]
        assert (f0[0], f0[-1]) == (100, 109)
        assert (np.diff(f0) > 0).all()
        assert "f0" in how
        assert len(picked(store, 50)[0]) == 9  # not the one without a number


def test_samples_are_spread_evenly_where_there_is_no_f0(tmp_path: Path) -> None:
    with baked(tmp_path / "s.zarr", lambda i: {"v": np.float64(i)}, 9, {"v": Field((), "f8", ())}) as store:
        assert picked(store, 3)[0] == [0, 4, 8]
        assert picked(store, 1)[0] == [0]
        with pytest.raises(RecipeError, match="at least 1"):
            report(store, samples=0)


def test_a_damaged_sample_is_told_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    baked(path, tone, 3, SCHEMA, codec="raw").close()
    flip(path, "y", 1)
    with open_store(path) as store:
        page = report(store, samples=3)
    assert len(pictures(page)) == 3  # two samples, and the distributions
    told = re.search(r'<p class="damaged">(.*?)</p>', page)
    assert told is not None
    assert "sample 1: damaged" in told[1]
    assert "field &#x27;y&#x27;" in told[1]


def test_a_store_of_scalars_alone_has_distributions_and_no_samples(tmp_path: Path) -> None:
    with baked(tmp_path / "s.zarr", numbers, 40, SCALARS) as store:
        page = report(store)
    assert len(pictures(page)) == 1
    assert "<h2>Samples</h2>" not in page


def test_a_file_of_others_has_a_report_without_keys(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["waves"] = np.random.default_rng(0).standard_normal((5, 400))
    done = run(tmp_path / "theirs.h5", "--html", tmp_path / "r.html", "--plot", tmp_path / "p.png")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "r.html").read_text()
    assert len(pictures(page)) == 5
    assert "<h2>Keys</h2>" not in page


# ---- the command line


@pytest.mark.parametrize(
    ("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")]
)
def test_the_suffix_says_what_a_picture_becomes(
    tones: Store, tmp_path: Path, suffix: str, magic: bytes
) -> None:
    picture = tmp_path / f"out.{suffix}"
    picture.write_text("what was there")
    done = run(tones.path, "--plot", picture, "--sample", 1, "--field", "x")
    assert done.exit_code == 0, done.output
    assert re.fullmatch(rf"{re.escape(str(picture))}: [\d.]+ KiB\n", done.stdout)
    content = picture.read_bytes()
    assert content.startswith(magic)
    run(tones.path, "--plot", picture, "--sample", 1, "--field", "x")
    assert picture.read_bytes() == content  # the same picture is the same bytes


def test_both_files_are_named_in_json(tones: Store, tmp_path: Path) -> None:
    files = tmp_path / "p.png", tmp_path / "r.htm"
    done = run(tones.path, "--plot", files[0], "--html", files[1], "--json")
    assert json.loads(done.stdout) == {"plot": str(files[0]), "html": str(files[1])}
    assert all(file.stat().st_size > 1000 for file in files)
    assert len(list(tmp_path.iterdir())) == 2  # nothing is left beside


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--plot", "out.jpg"], "end it in .png or .svg or .pdf"),
        (["--html", "store.h5"], "end it in .html or .htm"),
        (["--html", "folder.html"], "is a folder"),
        (["--plot", "missing/out.png"], "no folder missing; make it first"),
        (["--plot", "out.png", "--sample", "3"], "--sample"),
        (["--plot", "out.png", "--field", "z"], "no field 'z'"),
        (["--sample", "1"], "--plot"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(
    tones: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    done = run(tones.path, *options)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.html"]


def test_a_full_disk_leaves_the_old_file_and_nothing_beside(
    tones: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.png").write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("parbake.store.durable.os.fsync", full)
    done = run(tones.path, "--plot", tmp_path / "out.png")
    assert done.exit_code == 1
    assert "out.png: cannot be written: No space left on device" in done.stderr
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("out.png", "old")]


def test_a_damaged_store_has_a_report_and_the_answer_is_no(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    baked(path, tone, 3, SCHEMA, codec="raw").close()
    flip(path, "y", 1)
    done = run(path, "--html", tmp_path / "r.html")
    assert done.exit_code == 1
    assert "damaged, as" in done.stderr
    assert "sample 1: damaged" in (tmp_path / "r.html").read_text()
    done = run(path, "--plot", tmp_path / "p.png")  # of the middle: none is shown instead
    assert done.exit_code == 1
    assert "field 'y', chunk 1" in done.stderr
    assert not (tmp_path / "p.png").exists()
