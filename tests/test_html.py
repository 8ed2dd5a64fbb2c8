"""Stores in notebooks: what the HTML says, that nothing in a file can act there, that it stays small."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bakery import Loaf
from numpy.typing import NDArray

from parbake import human
from parbake.browse import facts
from parbake.browse import html as html_module
from parbake.browse.html import STYLE, escaped, store_html, table
from parbake.browse.tree import tree
from parbake.loaders.dataset import StoreDataset
from parbake.producers.bake import bake
from parbake.producers.cached import cached
from parbake.store.concatenated import concatenated
from parbake.store.keys import Change, Freshness
from parbake.store.layout import Coord, Field
from parbake.store.store import Store, open_store
from parbake.store.verify import Damage, VerifyReport

VOID = {"br", "img", "path", "rect", "hr"}
ALLOWED = {
    *("div", "span", "style", "table", "thead", "tbody", "tr", "th", "td", "br", "details", "summary"),
    *("ul", "li", "code", "svg", "g", "path", "rect", "img"),
}


class Page(HTMLParser):
    """Checks as it reads: tags that balance, nothing that runs or loads; keeps texts and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("href", "srcset", "style", "id")
            if name == "src":
                assert (value or "").startswith("data:image/png;base64,")
            self.attributes.append((tag, name, value or ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            assert "http" not in data
            assert "@import" not in data
            assert "url(" not in data
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    @property
    def badge(self) -> str:
        return next(text for text in self.texts if text in BADGES)


BADGES = {"fresh", "unknown", "edited", "foreign", "damaged", "computed", "several", "stale", "whole"}


def page_of(shown: Any) -> Page:
    html = shown._repr_html_()
    assert len(html) < 200_000
    assert html.isprintable() or {c for c in html if not c.isprintable()} == {"\n"}  # those of the style
    html.encode()
    return Page(html)


@dataclass(frozen=True)
class Loaves:
    """Fields as they are given, of ones unless ``values`` has others."""

    fields: Mapping[str, Field]
    keys: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    samples: int = 5
    name: str = "loaves"
    version = 1
    batch_size = 5

    def schema(self) -> Mapping[str, Field]:
        return self.fields

    def invalidation_keys(self) -> Mapping[str, Any]:
        return self.keys

    def __len__(self) -> int:
        return self.samples

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        ones = {n: np.ones((stop - start, *self.fields[n].shape), self.fields[n].dtype) for n in fields}
        return {n: self.values[n][start:stop] if n in self.values else one for n, one in ones.items()}


def baked(folder: Path, producer: Loaves, name: str = "a.zarr") -> Store:
    return bake(producer, folder / name, progress=False)


WAVE = {
    "y": Field((50, 2), "f4", ("time", "channel"), units="V", coords={"channel": Coord(["left", "right"])})
}


# ---- what it says


def test_a_store_says_what_it_holds(store: Store) -> None:
    page = page_of(store)
    assert store.path.name in page.texts
    assert f"{store.samples:,} samples of loaf" in page.text
    for name, one in store.fields.items():
        [row] = [row for row in page.rows if row[0] == name]
        dims = [f"{d} {n:,}" for d, n in zip(one.dims, one.shape, strict=True)]
        units = f", {one.units}" if one.units not in (None, "1") else ""
        assert row[2] == "".join([f"sample {store.samples:,}", *dims, one.dtype.name, units])
        assert row[3].startswith(human.count(one.layout.chunk_samples, "sample"))
        assert f"{human.size(one.layout.chunk_nbytes)}, {one.layout.codec}" in row[3]
    assert "time" in [row[0] for row in page.rows]
    assert store.digest[:12] in page.text
    assert "seed" in page.texts
    assert store.provenance["bakes"][0]["ended"] in page.text


def test_the_numbers_are_those_of_the_statistics(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(5, 50, 2)).astype("f4")
    with baked(tmp_path, Loaves(WAVE, values={"y": values})) as store:
        page = page_of(store)
        said = store.statistics["y"]
    wanted = {"y": said} | {
        label: {what: said["channels"][what][i] for what in ("min", "max", "mean", "std")}
        for i, label in enumerate(("left", "right"))
    }
    first = page.rows[0].index("min")
    assert page.rows[0][first : first + 4] == ["min", "max", "mean", "std"]
    for name, numbers in wanted.items():
        [row] = [row for row in page.rows if row[0] == name and len(row) > first]
        assert row[first : first + 4] == [human.number(numbers[n]) for n in ("min", "max", "mean", "std")]
    assert wanted["left"]["min"] == pytest.approx(values[..., 0].min())


def test_pictures_are_there_and_say_what_they_show(tmp_path: Path) -> None:
    nodes = np.random.default_rng(0).random((2, 30))
    at = {name: Coord(one, dim="node") for name, one in zip("xy", nodes, strict=True)}
    fields = {
        "scalar": Field((), "f8", ()),
        "line": Field((100,), "f4", ("time",)),
        "image": Field((20, 30), "f4", ("row", "column")),
        "mesh": Field((30,), "f4", ("node",), coords=at),
        "other": Field((2, 2, 2, 2, 3), "f8", ("a", "b", "g", "d", "e")),
    }
    with baked(tmp_path, Loaves(fields)) as store:
        page = page_of(store)
    told = [(tag, text) for tag, name, text in page.attributes if name in ("alt", "aria-label")]
    assert [tag for tag, _ in told] == ["svg", "svg", "img", "img"]
    assert [text.split(":")[0].split()[0] for _, text in told] == ["scalar", "line", "image", "mesh"]


def test_tables_have_headers_for_those_who_listen(store: Store) -> None:
    scopes = [value for tag, name, value in page_of(store).attributes if name == "scope"]
    assert {"row", "col"} == set(scopes)


def test_the_first_samples_are_shown_as_such(store: Store) -> None:
    page = page_of(store.first(7))
    assert f"the first 7 of {store.samples} samples" in page.text
    assert f"min, max, mean and std are of all {store.samples} samples" in page.texts


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    fields = {name: Field((40,), "f4", ("time",), allow_nan=True) for name in ("some", "none")}
    values = {name: np.full((5, 40), np.nan, "f4") for name in fields}
    values["some"][:, 3:] = 1
    with baked(tmp_path, Loaves(fields, values=values)) as store:
        page = page_of(store)
    rows = {row[0]: row for row in page.rows}
    place = page.rows[0].index("not finite")
    assert rows["some"][place] == "15"
    assert rows["none"][place - 4 : place] == ["-"] * 4


# ---- the state


def test_what_was_compared_is_fresh_here_and_elsewhere(tmp_path: Path) -> None:
    with bake(Loaf(), tmp_path / "a.zarr", progress=False) as made:
        assert page_of(made).badge == "fresh"
    with bake(Loaf(), tmp_path / "a.zarr", progress=False) as again:
        assert page_of(again).badge == "fresh"
    with cached(Loaf(), tmp_path / "cache", progress=False) as kept:  # type: ignore[union-attr]
        assert page_of(kept).badge == "fresh"
    with open_store(tmp_path / "a.zarr") as store:
        assert page_of(store).badge == "unknown"
        assert store.freshness(Loaf())
        assert page_of(store).badge == "fresh"
        assert page_of(store.first(3)).badge == "fresh"
        assert page_of(pickle.loads(pickle.dumps(store.first(3)))).badge == "fresh"
        assert not store.freshness(Loaf(seed=1))
        assert page_of(store).badge == "unknown"
    with open_store(tmp_path / "a.zarr", expect=Loaf()) as expected:
        assert page_of(expected).badge == "fresh"


def test_an_edited_store_says_so(tmp_path: Path) -> None:
    baked(tmp_path, Loaves(WAVE)).close()
    root = tmp_path / "a.zarr" / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["title"] = "for the paper"
    root.write_text(json.dumps(document))
    with open_store(tmp_path / "a.zarr") as store:
        assert page_of(store).badge == "edited"


def test_a_foreign_file_is_shown_without_reading_it_all(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["y"] = np.random.default_rng(0).normal(size=(20, 300))
        file["y"].attrs["units"] = "<b>V</b>"
        file["y"].attrs["long_name"] = "<script>alert(1)</script>"
    with open_store(tmp_path / "theirs.h5") as store:
        page = page_of(store)
        assert "statistics" not in vars(store)
    assert page.badge == "foreign"
    assert "<b>V</b>" in page.text
    assert "min" not in page.rows[0]
    assert "sample 10" in page.text


def test_damage_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    whole = {"good": Field((50,), "f4", ("time",)), "bad": Field((50,), "f4", ("time",))}
    store = baked(tmp_path, Loaves(whole))
    store.close()
    [shard] = [
        file
        for file in (tmp_path / "a.zarr" / "bad").rglob("*")
        if file.is_file() and "json" not in file.name
    ]
    content = bytearray(shard.read_bytes())
    content[64:-64] = bytes(b ^ 0xFF for b in content[64:-64])
    shard.write_bytes(content)
    with open_store(tmp_path / "a.zarr") as damaged:
        page = page_of(damaged)
        report = damaged.verify()
    assert page.badge == "damaged"
    rows = {row[0]: row for row in page.rows}
    assert rows["bad"][1] == "damaged"
    assert "sample 2" in rows["good"][1]
    assert not report
    assert page_of(report).badge == "damaged"


@pytest.mark.parametrize("gone", ["x", "manifest", "y", "*"])
def test_a_store_that_loses_files_is_shown_still(tmp_path: Path, gone: str) -> None:
    nodes = {name: Coord(np.random.default_rng(0).random(30), dim="node") for name in "xz"}
    store = baked(tmp_path, Loaves({"y": Field((30,), "f4", ("node",), coords=nodes)}))
    for part in sorted((tmp_path / "a.zarr").glob(gone)):
        for file in [part] if part.is_file() else [one for one in part.rglob("*") if one.is_file()]:
            file.unlink()
    store.close()
    for one in (store,):
        page = page_of(one)
        assert "a.zarr" in page.texts
    if gone != "*":
        with open_store(tmp_path / "a.zarr") as opened:
            assert page_of(opened).badge == "damaged"


# ---- what it must not do

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e\x1b[31m\0\n</style></details>"


def test_a_closed_store_says_so_once(tmp_path: Path) -> None:
    with bake(Loaf(), tmp_path / "a.zarr", progress=False) as store:
        pass
    html = store._repr_html_()
    assert html.count("the store is closed") == 1
    assert "more fault" not in html


def test_nothing_in_a_file_acts(tmp_path: Path) -> None:
    labels = Coord([HOSTILE, HOSTILE + "2"])
    fields = {
        "y": Field(
            (50, 2), "f4", ("time", "channel"), units=HOSTILE, description=HOSTILE, coords={"channel": labels}
        ),
        "z": Field((50,), "f4", ("time",), keys={HOSTILE: HOSTILE}),
    }
    keys = {HOSTILE: {HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]}, "long": HOSTILE * 500}
    store = bake(Loaves(fields, keys, name=HOSTILE), tmp_path / "a.zarr", progress=False, command=HOSTILE)
    with store:
        page = page_of(store)
    assert "<script>alert(1)</script>" in page.text
    assert "\\u202e" in page.text
    assert "\u202e" not in page.text


@pytest.mark.parametrize(
    "keys",
    [
        {str(i): i for i in range(10_000)},
        {"text": "x" * 1_000_000, "k" * 1_000_000: 1},
        {"numbers": list(range(100_000)), "texts": ["y" * 10_000] * 1000},
        {"a": {"b" * 90: {str(i): {"c": {"d": "e" * 300}} for i in range(1000)}}},
        {"list": [{"a": 1}] * 5000, "empty": {}, "none": []},
    ],
)
def test_large_keys_are_cut(keys: dict[str, Any]) -> None:
    shown = tree(keys)
    Page(shown)
    assert len(shown) < 80_000
    assert "more" in shown or "in all" in shown


def test_deep_keys_are_cut() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = {"x": deep}
    try:
        shown = tree({"deep": deep})
    finally:
        while isinstance(deep, dict):  # frees it level by level
            deep = deep.pop("x")
    assert "1 members" in shown
    Page(shown)


def test_many_fields_and_labels_stay_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = {"channel": Coord([f"{i} {'long' * 100}" for i in range(70)])}
    fields = {f"f{i}": Field((30, 30), "f4", ("a", "b"), description="d" * 5000) for i in range(40)}
    fields |= {
        f"c{i}": Field((40, 70), "f4", ("t", "channel"), coords=labels, units="u" * 900) for i in range(9)
    }
    fields = dict(sorted(fields.items()))
    values = {name: rng.normal(size=(1, *one.shape)).astype("f4") for name, one in fields.items()}
    with baked(tmp_path, Loaves(fields, values=values, samples=1)) as store:
        page = page_of(store)
    assert f"and {len(fields) - html_module.ROWS_MAX} more fields" in page.texts


@pytest.mark.parametrize(
    "provenance", [{"bakes": 3}, {"segments": [{}]}, {"bakes": [{"samples": "many"}]}, {"a": "<b>"}]
)
def test_provenance_of_another_form_is_shown(tmp_path: Path, provenance: dict[str, Any]) -> None:
    with baked(tmp_path, Loaves(WAVE)) as store:
        odd = copy.copy(store)
        document = copy.copy(store.contents.document)
        object.__setattr__(document, "provenance", provenance)
        contents = copy.copy(store.contents)
        object.__setattr__(contents, "document", document)
        odd.contents = contents
        page = Page(store_html(odd))
    assert any(text.startswith("Provenance") for text in page.texts)
    assert next(iter(provenance)) in page.text
    [(name, _)] = facts.provenance_lines(provenance)  # the terminal and the report show it too
    assert name == next(iter(provenance))


def test_text_is_escaped_and_cut() -> None:
    assert escaped("<a & 'b'>\n\x1b\u202e") == "&lt;a &amp; &#x27;b&#x27;&gt;\\n\\x1b\\u202e"
    assert escaped("x" * 500) == "x" * 400 + "… (100 more characters)"
    assert escaped("\ud800").encode() == b"\\ud800"
    assert table(("a", "b"), [("1", "2")], (1,)).count('align="right"') == 2


def test_the_style_meets_themes_and_touches_nothing_else() -> None:
    for theme in ("--jp-content-font-color1", "--vscode-editor-foreground", "prefers-color-scheme: dark"):
        assert theme in STYLE
    for rule in re.findall(r"([^{}]+)\{[^{}]*\}", STYLE):
        for selector in rule.split(","):
            assert ".parbake" in selector or selector.strip().startswith("@media")


# ---- what else shows itself


def test_freshness_shows_what_differs() -> None:
    assert page_of(Freshness()).badge == "fresh"
    assert repr(Freshness()) == "<parbake.Freshness: fresh>"
    changes = (Change(None, "rate<", 1, {"sha256": "a" * 64}), Change("y", "units", None, "V" * 9999))
    page = page_of(Freshness(changes))
    assert page.badge == "stale"
    assert page.rows[1] == ["", "rate<", "1", "1 members"]
    assert page.rows[2][:3] == ["y", "units", "null"]
    assert repr(Freshness(changes[:1])).startswith("<parbake.Freshness: stale: rate<: 1 -> ")
    assert "and 960 more keys" in page_of(Freshness(changes[:1] * 1000)).texts


def test_verification_shows_what_is_damaged() -> None:
    whole = VerifyReport((), 2048, ("<x>",))
    assert page_of(whole).badge == "whole"
    assert "2.00 KiB checked; read, but without checksums: <x>" in page_of(whole).texts
    assert repr(whole) == "<parbake.VerifyReport: whole; 2,048 bytes checked; without checksums: <x>>"
    damage = Damage("y/c/0/0", "y", 8, 16, "crc32c <differs>")
    page = page_of(VerifyReport((damage,) * 50, 0))
    assert page.rows[1] == ["y/c/0/0", "y", "8 to 15", "crc32c <differs>"]
    assert "and 10 more damaged parts" in page.texts
    assert "and 49 more" in repr(VerifyReport((damage,) * 50, 0))


def test_samples_that_are_no_store_show_their_fields(tmp_path: Path, store: Store) -> None:
    computed = cached(Loaf(trap=None), tmp_path, use_cache=False)
    page = page_of(computed)
    assert page.badge == "computed"
    assert {"wave", "count", "f0", "level"} <= {row[0] for row in page.rows}
    both = page_of(concatenated([store, store]))
    assert both.badge == "several"
    assert [str(store.path), f"{store.samples}"] in both.rows


def shout(sample: Any) -> Any:
    return sample


def test_a_dataset_says_what_it_gives(store: Store) -> None:
    ds = StoreDataset(
        store, ("wave", "f0"), as_tuple=True, crop={"time": 5}, transform=shout, with_index=True
    )
    assert repr(ds) == (
        f"<parbake.StoreDataset {str(store.path)!r}: {store.samples} samples; wave [5, 2] float32, "
        "f0 [] float32, index [] int64; as tuples in this order; cropped to 5 of 24 along time, anywhere; "
        "transform shout>"
    )
    page = page_of(ds)
    assert page.rows[1:] == [["wave", "[5, 2]", "float32"], ["f0", "[]", "float32"], ["index", "[]", "int64"]]
    assert "transform shout" in page.texts
    assert "from 2 on" in repr(StoreDataset(store, crop={"time": slice(2, 4)}))
