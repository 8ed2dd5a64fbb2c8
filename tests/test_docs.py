"""What README and the pages show runs as it stands there; the site builds, whole and by itself."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bakery import memory_folder
from click.testing import CliRunner
from pages import LANGUAGES, Block, PageRun, bake_stores, blocks_of, write_inputs

import parbake
import parbake.errors
import parbake.producers
from parbake.cli import main
from parbake.producers.audio.paper import PAPER_CONFIGS, PaperConfig
from parbake.store.store import open_store

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    if DOCS / "reference" not in path.parents
}
WITH_CODE = {name: blocks for name, text in PAGES.items() if (blocks := blocks_of(text))}
LEFT_OUT = [(name, block) for name, blocks in WITH_CODE.items() for block in blocks if block.skipped]
SITE_NBYTES_MAX = 20 * 1024**2


# ---- blocks


@pytest.fixture(scope="session")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what every page finds in its own."""
    folder = tmp_path_factory.mktemp("page")
    bake_stores(folder)
    write_inputs(folder)
    return folder


@pytest.fixture
def folder(baked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, as a page finds it; tones of the paper's set-ups are short.

    It lies in memory: pages bake many small stores, and would wait for the disk to sync them.
    """
    with memory_folder(tmp_path) as above:
        shutil.copytree(baked, above / "here")
        with monkeypatch.context() as patch:
            yield from _inside(above / "here", above / "cache", patch)


def _inside(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PARBAKE_CACHE", str(cache))
    for number, config in PAPER_CONFIGS.items():
        short = PaperConfig(config.family, config.sample_rate, 0.02)
        monkeypatch.setitem(PAPER_CONFIGS, number, short)  # type: ignore[arg-type]
    monkeypatch.setattr("parbake.producers.audio.sine.VALIDATION_DURATION_S", 0.02)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def run_page(name: str, blocks: list[Block]) -> dict[str, Any]:
    """The names that a page leaves."""
    page = PageRun(name, blocks, {"train.zarr", "val.zarr"})
    page.run()
    return vars(page.module)


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_page_runs(name: str, folder: Path) -> None:
    names = run_page(name, WITH_CODE[name])
    if name in AFTER:
        AFTER[name](names)


@pytest.mark.parametrize(("name", "block"), LEFT_OUT, ids=[f"{n}:{b.line}" for n, b in LEFT_OUT])
def test_a_block_is_left_out(name: str, block: Block) -> None:
    """One for each block that does not run, so that every run of the tests lists them."""
    assert block.skipped is not None
    assert len(block.skipped.split()) >= 2, f"{name}:{block.line}: say why"
    pytest.skip(f"{name}:{block.line} is not run: {block.skipped}")


def test_nearly_all_blocks_run() -> None:
    code = [b for blocks in WITH_CODE.values() for b in blocks if b.language != "text"]
    assert len(code) >= 40
    assert len(LEFT_OUT) <= 0.15 * len(code), [f"{name}:{block.line}" for name, block in LEFT_OUT]


def test_blocks_are_of_kinds_that_are_known() -> None:
    for name, blocks in WITH_CODE.items():
        assert PAGES[name].count("```") == 2 * len(blocks), f"{name}: a fence is not closed"
        for block in blocks:
            assert block.language in LANGUAGES, f"{name}:{block.line}: {block.language!r}"
            if block.language == "yaml":
                assert block.file_name, f"{name}:{block.line}: the first line names no file"


WRONG = {
    "an error": "```python\n1 / 0\n```",
    "a warning": "```python\nimport warnings\nwarnings.warn('old')\n```",
    "a name of a later block": "```python\nlater\n```\n\n```python\nlater = 1\n```",
    "another answer": "```console\n$ parbake check train.zarr\nstale\n```",
    "another exit code": "```console\n$ parbake check train.zarr\n$ echo $?\n1\n```",
    "an unknown verb": "```console\n$ parbake bakes train.zarr\n```",
    "an unknown option": "```console\n$ parbake inspect train.zarr --jason\n```",
    "no such store": "```console\n$ parbake inspect other.zarr\n```",
    "another program": "```console\n$ rm -rf train.zarr\n```",
    "a pipe": "```console\n$ parbake ls . | cat\n```",
    "output alone": "```console\nfresh\n```",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_page_that_is_wrong_fails(text: str, folder: Path) -> None:
    with pytest.raises((AssertionError, ZeroDivisionError, NameError, UserWarning)):
        run_page("wrong", blocks_of(text))


def test_a_page_that_is_right_passes(folder: Path) -> None:
    text = """
        ```console
        $ parbake check train.zarr
        fresh
        $ parbake build made.yaml
        $ parbake diff train.zarr made.zarr
        equal
        ```
        <!-- not run: is wrong -->
        ```python
        1 / 0
        ```
        ```yaml
        # made.yaml
        producer: sine-teacher
        params:
          num_samples: 5000
        store:
          path: made.zarr
        ```
        ```python
        one = 1
        ```
        ```text
        anything
        ```
        """
    blocks = blocks_of(text)
    assert [block.skipped for block in blocks] == [None, "is wrong", None, None, None]
    assert run_page("right", blocks)["one"] == 1
    assert len(open_store("made.zarr")) == 5  # fields
    assert open_store("made.zarr").samples == 100


# ---- what some pages leave, as their text says


def _readme(names: dict[str, Any]) -> None:
    assert {"train", "store", "Waves", "teacher", "pair"} <= names.keys()
    code = next(block.code for block in WITH_CODE["README.md"] if "class Waves" in block.code)
    Path("simulations.py").write_text(code)
    _parbake("build", "simulations:Waves", "--speed", "2", "-o", "waves.zarr")
    assert _parbake("check", "waves.zarr", "simulations:Waves", "--speed", "2").strip() == "fresh"


def _parbake(*words: str) -> str:
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def _loaders(names: dict[str, Any]) -> None:
    assert names["windows"][0]["x"].shape == (256, 1)
    assert names["again"].state_dict() == names["state"]


def _containers(names: dict[str, Any]) -> None:
    assert names["store"].is_foreign
    assert len(names["train"]) == 100


AFTER: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": _readme,
    "docs/loaders.md": _loaders,
    "docs/containers.md": _containers,
}


def test_recipe_of_the_readme_is_one(tmp_path: Path) -> None:
    from parbake.producers.recipe import load_recipe, make_producer, producer_class

    block = next(b for b in WITH_CODE["README.md"] if b.file_name == "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(block.code)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    params = {name: value for name, value in recipe.params.items() if name not in ("teacher", "sample_rate")}
    assert len(make_producer(producer_class(recipe.producer), params)) == 50_000


# ---- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: any warning, such as a link or anchor that leads nowhere, fails."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("needs mkdocs-material, of the extra [docs]")
    folder = tmp_path_factory.mktemp("site")
    # not --quiet, which keeps --strict from seeing warnings
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_builds_and_loads_nothing_from_other_hosts(site: Path) -> None:
    for name in PAGES:
        if name.startswith("docs/"):
            assert (site / Path(name).relative_to("docs").with_suffix(".html")).is_file(), (
                f"{name}: not built"
            )
    found = [
        f"{path.name}: {loaded}" for path in site.rglob("*.html") for loaded in _loaded(path.read_text())
    ]
    found += [
        f"{path.name}: {loaded}" for path in site.rglob("*.css") for loaded in _styled(path.read_text())
    ]
    assert found == []
    assert (site / "search" / "search_index.json").stat().st_size > 100_000
    assert sum(path.stat().st_size for path in site.rglob("*")) < SITE_NBYTES_MAX
    shown = "".join(path.read_text() for path in (site / "reference").glob("*.html"))
    missing = [
        name for name in parbake.__all__ if not name.startswith("_") and f'.{name}" class="doc' not in shown
    ]
    assert missing == [], "of the face, but not in docs/reference"


def test_the_reference_says_where_each_name_comes_from() -> None:
    """From ``parbake`` or ``parbake.producers``, or the page names the module."""
    faces = {*parbake.__all__, *parbake.producers.__all__}
    unsaid = []
    for page in sorted((DOCS / "reference").glob("*.md")):
        text = page.read_text()
        for module, name in re.findall(r"^::: (parbake\.\S+)\.(\w+)$", text, re.M):
            if name not in faces and name != "errors" and f"`{module}`" not in text:
                unsaid.append(f"{page.name}: {module}.{name}")
    assert unsaid == []
    told = (name for name, value in vars(parbake.errors).items() if isinstance(value, type))
    assert {name for name in told if name.endswith(("Error", "Warning"))} <= faces


def _loaded(html: str) -> list[str]:
    """Addresses on other hosts that a browser asks for by itself: not those of links to follow."""
    tags = re.findall(r"<(?!a\b)[a-z]+\b[^>]*>", html)
    found = [
        url for tag in tags for url in re.findall(r"(?:src|srcset|href|data|poster)=[\"']?([^\"'\s>]+)", tag)
    ]
    return [url for url in found if re.match(r"(?:https?:)?//", url)] + _styled(html)


def _styled(css: str) -> list[str]:
    found = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s;]+)", css)
    return [url for url in found if re.match(r"(?:https?:)?//", url)]


def test_what_a_browser_would_load_is_seen() -> None:
    here = '<a href="https://x.org/"><img src="a.png"><style>b{background:url("data:image/svg,x")}</style>'
    assert _loaded(here) == []
    for tag in (
        '<script src="https://x.org/a.js"></script>',
        "<link rel=stylesheet href=//x.org/a.css>",
        "<img alt='' src='http://x.org/a.png'>",
        "<style>@import 'https://x.org/a.css';</style>",
        '<p style="background: url(https://x.org/a.png)">',
    ):
        assert len(_loaded(here + tag)) == 1


def test_links_of_the_pages_lead_somewhere_on_their_own() -> None:
    """As they stand in the repository, where README, CHANGELOG and CONTRIBUTING are read."""
    texts = PAGES | {name: (ROOT / name).read_text() for name in ("CHANGELOG.md", "CONTRIBUTING.md")}
    dead = []
    for name, text in texts.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            file, _, anchor = target.partition("#")
            path = (ROOT / name).parent / file if file else ROOT / name
            if re.match(r"[a-z]+:", target):
                continue
            if not path.exists() or (
                anchor and path.suffix == ".md" and anchor not in _anchors(path.read_text())
            ):
                dead.append(f"{name}: {target}")
    assert dead == []


def _anchors(text: str) -> set[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.+?) *$", prose, re.M)
    found = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}
    return found | set(re.findall(r"^::: (\S+)", prose, re.M))
