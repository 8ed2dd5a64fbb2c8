"""Pages as readers see them, in Chromium: the harness finds what is wrong, and with ours nothing is."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from browser import Browser, Page, Theme
from click.testing import CliRunner
from grids import ring
from numpy.typing import NDArray

import parbake
from parbake.cli import main
from parbake.producers import MeshPair, MeshSeries, SineTeacher

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))
THEMES: tuple[Theme, Theme] = ("light", "dark")
HOSTILE = "</style></svg>\"'><img src=http://far.example/a onerror=alert(1)><script>alert(2)</script>&amp;<b>"

TIP = "<details><summary>More</summary><p>Folded away</p></details>"
RED = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="


def page(body: str, head: str = "") -> str:
    return f"<!doctype html><html><head><meta charset=utf-8>{head}</head><body>{body}</body></html>"


# ---- each check can fail


@pytest.mark.parametrize("theme", THEMES)
def test_a_good_page_has_no_problems(browser: Browser, theme: Theme) -> None:
    good = page(f"<p>Text</p><img alt=red src='data:image/png;base64,{RED}'>{TIP}")
    assert browser.open(good, theme=theme).problems() == []


def test_every_kind_of_request_is_found(browser: Browser) -> None:
    asking = [
        "<img alt='' src='{}'>",
        "<script src='{}'></script>",
        "<link rel=stylesheet href='{}'>",
        "<link rel=preload as=font href='{}'>",
        "<style>@import url({});</style>",
        "<style>p {{ background: url({}) }}</style><p>Text</p>",
        "<style>@font-face {{ font-family: f; src: url({}) }} b {{ font-family: f }}</style><b>Text</b>",
        "<iframe src='{}'></iframe>",
        "<svg><image href='{}' width=9 height=9></svg>",
        "<script>fetch('{}').catch(() => 0)</script>",
        "<script>new WebSocket('ws{}'.replace('http', ''))</script>",
    ]
    wanted = {html: f"http://far.example/{number}" for number, html in enumerate(asking)}
    beside = "<img alt='' src='beside.png'>"  # a file that a reader of the page alone has not
    body = "".join(html.format(url) for html, url in wanted.items()) + beside
    found = {url.replace("ws:", "http:") for url in browser.open(page(body)).requests()}
    assert {html for html, url in wanted.items() if url not in found} == set()
    [other] = found - set(wanted.values())
    assert other.endswith("/beside.png")


def test_every_kind_of_complaint_in_the_console_is_found(browser: Browser) -> None:
    scripts = [
        "console.error('one')",
        "console.warn('two')",
        "throw new Error('three')",
        "Promise.reject(new Error('four'))",
        "console.log('five')",
    ]
    body = "".join(f"<script>{script}</script>" for script in scripts)
    found = "\n".join(browser.open(page(body)).complaints())
    assert [word in found for word in ("one", "two", "three", "four", "five")] == [True] * 4 + [False]
    assert browser.open(page(body), scripts=False).complaints() == []


def test_contrast_is_that_of_wcag(browser: Browser) -> None:
    wanted = {
        "color: #777": 4.48,  # the grey that just fails, as WCAG's readers know it
        "color: #767676": 4.54,
        "color: #000": 21.0,
        "color: #fff; background: rgb(0 0 0 / 50%)": 3.98,  # on what half of black leaves of the white page
        "color: #000; opacity: 0.5": 3.98,
        "color: rgb(0 0 0 / 50%)": 3.98,
    }
    shown = browser.open(page("".join(f"<p style='{style}'>{style}</p>" for style in wanted)))
    found = {text: ratio for ratio, text in shown.contrasts()}
    assert found == pytest.approx(wanted, abs=0.06)
    assert {text.split(": ", 2)[2] for text in shown.problems()} == {
        style for style, ratio in wanted.items() if ratio < 4.5
    }


def test_text_that_only_one_theme_hides_is_found_in_that_theme(browser: Browser) -> None:
    head = "<style>:root { color-scheme: light dark } p { color: #333 }</style>"
    assert browser.open(page("<p>Text</p>", head), theme="light").problems() == []
    assert [p[:8] for p in browser.open(page("<p>Text</p>", head), theme="dark").problems()] == ["contrast"]


def test_text_in_a_drawing_counts_and_folded_text_does_not(browser: Browser) -> None:
    faint = "<svg><text y=20 fill='#eee'>Drawn</text></svg>"
    assert [text for _, text in browser.open(page(faint)).contrasts()] == ["Drawn"]
    folded = browser.open(page(TIP))
    assert [text for _, text in folded.contrasts()] == ["More"]
    folded.unfold()
    assert [text for _, text in folded.contrasts()] == ["More", "Folded away"]


def test_what_does_not_fit_is_found(browser: Browser) -> None:
    fits = "<div style='overflow-x: auto'><div style='width: 2000px'>Wide, but can be scrolled to</div></div>"
    cut = "<div style='width: 5em; overflow: hidden; white-space: nowrap'>Cut off where no one sees it</div>"
    wide = "<div style='width: 901px'>Wide</div>"
    assert browser.open(page(fits)).overflows() == []
    [found] = browser.open(page(fits + cut)).overflows()
    assert found.startswith("cut off: Cut off where")
    [found] = browser.open(page(fits + wide)).overflows()
    assert found.startswith("the page is 9")


def test_an_image_that_cannot_be_decoded_is_found(browser: Browser) -> None:
    assert browser.open(page("<img alt=torn src='data:image/png;base64,AAAA'>")).broken_images() == ["torn"]


# ---- the notebook view of stores


@dataclass(frozen=True)
class Wide:
    """More fields than a window has room for, with long names, texts and keys."""

    name = "wide"
    version = 1
    names = tuple(f"a_quantity_whose_name_is_as_long_as_names_get_{i}" for i in range(40))

    def schema(self) -> Mapping[str, parbake.Field]:
        text = "a description that goes on " * 8
        return {n: parbake.Field((3, 5), "float32", ("row", "column"), description=text) for n in self.names}

    def invalidation_keys(self) -> Mapping[str, object]:
        return {HOSTILE: HOSTILE, "long": "x" * 300, "deep": {"a": {"b": {"c": [1, {"d": [2] * 50}]}}}}

    def __len__(self) -> int:
        return 12

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return {n: np.ones((stop - start, 3, 5), np.float32) for n in fields}


def flow(around: int, across: int) -> MeshSeries:
    points, cells = ring(around, across)
    waves = np.sin(points.sum(axis=1) + np.arange(4)[:, None])
    return MeshSeries.from_arrays(points, np.arange(4.0), {"p": waves.astype(np.float32)}, cells=cells)


def hostile_file(path: Path) -> Path:
    """What someone may have written to do harm to who looks at it."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset(HOSTILE.replace("/", "|"), data=np.ones((8, 40), np.float32))
        data.attrs.update({"units": HOSTILE, "long_name": HOSTILE})
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, parbake.Store]:
    """Stores of every kind, by name."""
    folder = tmp_path_factory.mktemp("stores")
    bake = functools.partial(parbake.bake, progress=False)
    tones = SineTeacher(num_samples=20, duration=0.02)
    bake(tones, folder / "tones.zarr").close()
    damaged = bake(SineTeacher(num_samples=3, duration=0.02, seed=2), folder / "damaged.zarr")
    shard = next(file for file in (damaged.path / "y" / "c").rglob("*") if file.is_file())
    damaged.close()
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 1
    shard.write_bytes(content)
    return {
        "tones": parbake.open_store(folder / "tones.zarr"),
        "fresh": parbake.open_store(folder / "tones.zarr", expect=tones),
        "meshes": bake(MeshPair(flow(12, 3), flow(24, 6), operators=folder), folder / "meshes.zarr"),
        "wide": bake(Wide(), folder / f"{'long' * 30}.zarr"),
        "damaged": parbake.open_store(folder / "damaged.zarr"),
        "hostile": parbake.open_store(hostile_file(folder / "hostile <i>.h5")),
    }


@pytest.fixture(scope="module")
def views(stores: Mapping[str, parbake.Store]) -> Mapping[str, str]:
    """What a notebook shows of these stores and of what one asks them."""
    tones = SineTeacher(num_samples=20, duration=0.02, db_max=-6)
    answers = {
        "stale": stores["tones"].freshness(tones),
        "verified": stores["tones"].verify(),
        "not whole": stores["damaged"].verify(),
    }
    return {name: value._repr_html_() for name, value in {**stores, **answers}.items()}


@functools.cache
def exporter(theme: Theme) -> object:
    """Notebooks to pages, as JupyterLab shows them in one of its themes, but from nobody's servers."""
    nbconvert = pytest.importorskip("nbconvert", reason="needs nbconvert: pip install parbake[test]")
    urls = ("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url", "mermaid_layout_elk_js_url")
    return nbconvert.HTMLExporter(theme=theme, **dict.fromkeys(urls, "data:text/javascript,"))


def notebook_page(outputs: Mapping[str, str], theme: Theme) -> str:
    """A notebook with a cell for each output, in JupyterLab's theme."""
    nbformat = pytest.importorskip("nbformat.v4", reason="needs nbformat: pip install parbake[test]")
    cells = [
        nbformat.new_code_cell(
            f"# {name}", outputs=[nbformat.new_output("display_data", {"text/html": html})]
        )
        for name, html in outputs.items()
    ]
    notebook = nbformat.new_notebook(cells=cells)
    return str(exporter(theme).from_notebook_node(notebook)[0])  # type: ignore[attr-defined]


def assert_flawless(shown: Page, within: str = "body") -> None:
    """Nothing is wrong with it, folded or unfolded."""
    assert shown.problems(within) == []
    shown.unfold()
    assert shown.problems(within) == []


@pytest.mark.parametrize("theme", THEMES)
def test_views_of_stores_are_flawless_in_a_bare_page(
    browser: Browser, views: Mapping[str, str], theme: Theme
) -> None:
    assert_flawless(browser.open(page("".join(views.values())), theme=theme, scripts=False))


@pytest.mark.parametrize("system", THEMES)
@pytest.mark.parametrize("jupyter", THEMES)
def test_views_of_stores_are_flawless_in_jupyter(
    browser: Browser, views: Mapping[str, str], jupyter: Theme, system: Theme
) -> None:
    """Whatever the theme of the system: Jupyter's own counts."""
    shown = browser.open(notebook_page(views, jupyter), theme=system)
    assert_flawless(shown, ".jp-OutputArea-output")


def test_what_a_file_says_is_shown_as_text(browser: Browser, views: Mapping[str, str]) -> None:
    shown = browser.open(page(views["hostile"] + views["wide"]))
    shown.unfold()
    assert "<script>alert(2)<" in shown.text()
    assert shown.find("img[onerror], script, b") == []
    assert shown.problems() == []


def test_folds_open_by_mouse_and_keyboard_without_scripts(browser: Browser, views: Mapping[str, str]) -> None:
    from selenium.webdriver.common.keys import Keys

    shown = browser.open(page(views["tones"]), scripts=False)
    assert "midi_max" not in shown.text()  # a key
    folds = shown.find("details > summary")
    assert len(folds) >= 2
    for fold in folds:
        if fold.is_displayed():
            fold.click()
    assert "midi_max" in shown.text()
    shown = browser.open(page(views["tones"]), scripts=False)
    for fold in shown.find("details > summary"):
        if fold.is_displayed():
            fold.send_keys(Keys.ENTER)
    assert "midi_max" in shown.text()


@pytest.mark.parametrize("name", ["tones", "meshes"])
def test_views_have_pictures_that_need_no_scrolling(
    browser: Browser, views: Mapping[str, str], name: str
) -> None:
    """Also in a notebook, whose prompts and margins take their share of a narrow window."""
    shown = browser.open(notebook_page({name: views[name]}, "light"))
    places = [picture.rect for picture in shown.find(".parbake svg, .parbake img") if picture.is_displayed()]
    [output] = [area.rect for area in shown.find(".jp-OutputArea-output")]
    assert places
    for place in places:
        assert min(place["width"], place["height"]) > 10
        assert place["x"] + place["width"] <= output["x"] + output["width"]


# ---- reports


@pytest.mark.parametrize("name", ["tones", "meshes", "hostile"])
def test_reports_are_flawless(
    browser: Browser, stores: Mapping[str, parbake.Store], name: str, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    done = CliRunner().invoke(main, ["inspect", str(stores[name].path), "--html", str(file)])
    assert done.exit_code == 0, done.output
    for theme in THEMES:
        shown = browser.open(file, theme=theme, scripts=False)
        assert_flawless(shown)
    assert any(image.is_displayed() for image in shown.find("img, svg"))


# ---- the notebooks of the repository


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_saved_notebooks_are_flawless(browser: Browser, file: Path, theme: Theme) -> None:
    html, _ = exporter(theme).from_filename(str(file))  # type: ignore[attr-defined]
    shown = browser.open(html, theme=theme)
    assert_flawless(shown, ".parbake")  # xarray's and pandas' colours are theirs
    assert len(shown.find("img")) >= 1
