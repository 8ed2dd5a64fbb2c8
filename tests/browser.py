"""Pages in headless Chromium: what they ask for, complain of and look like."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

Theme = Literal["light", "dark"]

WIDTH, HEIGHT = 900, 1200  # pixels
CONTRAST_MIN = 4.5  # WCAG 2.2, success criterion 1.4.3, of text that is not large

# Draws until all that loading set off has been laid out
_SETTLED = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"

# Each shown text with its contrast: [[ratio, text], ...]. Colours are read back from a canvas, so that every
# notation is understood. Relative luminance and ratio: WCAG 2.2, "relative luminance", "contrast ratio".
_CONTRASTS = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function rgba(colour) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}
const over = (top, below) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
const probe = document.documentElement.appendChild(document.createElement("i"));
probe.style.cssText = "display: none; background-color: Canvas";
const paper = rgba(getComputedStyle(probe).backgroundColor);
probe.remove();
function ancestors(element) {
  const found = [];
  for (; element; element = element.parentElement) found.unshift(element);
  return found;
}
function luminance(colour) {
  const [r, g, b] = colour.slice(0, 3).map(c => c / 255).map(
    c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
const found = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement, text = texts.currentNode.data.trim();
  const shown = {opacityProperty: true, visibilityProperty: true, contentVisibilityAuto: true};
  if (!text || ["SCRIPT", "STYLE", "TEMPLATE"].includes(element.tagName)) continue;
  if (!element.closest(arguments[0]) || !element.checkVisibility(shown)) continue;
  const range = document.createRange();
  range.selectNodeContents(texts.currentNode);
  if (!range.getBoundingClientRect().width) continue;
  let below = paper, opacity = 1;
  for (const box of ancestors(element)) {
    const style = getComputedStyle(box);
    opacity *= style.opacity;
    if (!(box instanceof SVGElement)) below = over(rgba(style.backgroundColor), below);
  }
  const style = getComputedStyle(element);
  const ink = rgba(element instanceof SVGElement ? style.fill : style.color);
  ink[3] *= opacity;
  const [dark, bright] = [luminance(over(ink, below)), luminance(below)].sort((a, b) => a - b);
  found.push([(bright + 0.05) / (dark + 0.05), text.slice(0, 60)]);
}
return found;
"""

_WIDE = """
const found = [];
if (document.documentElement.scrollWidth > innerWidth)
  found.push(`the page is ${document.documentElement.scrollWidth} px wide in a window of ${innerWidth} px`);
return found;
"""

# Elements whose text is cut off where nobody can scroll to it
_CUT = """
return [...document.body.querySelectorAll("*")].filter(element =>
  element.checkVisibility() && element.clientWidth && element.scrollWidth > element.clientWidth + 1 &&
  ["hidden", "clip"].includes(getComputedStyle(element).overflowX) &&
  getComputedStyle(element).textOverflow !== "ellipsis" && element.textContent.trim()
).map(element => element.textContent.trim().slice(0, 60));
"""

_BROKEN = """
return [...document.images].filter(image => image.checkVisibility() && !image.naturalWidth).map(
  image => image.alt || image.src.slice(0, 60));
"""


@dataclass
class Page:
    """A page as it stands open in the one window of a ``Browser``; valid until that opens another."""

    driver: Any
    url: str
    _scripts: bool
    _asked: list[str] = field(default_factory=list)
    _said: list[str] = field(default_factory=list)

    def problems(self, within: str = "body") -> list[str]:
        """All that is wrong with what is shown now; faint texts count only inside ``within``, a selector."""
        return [
            *(f"request: {url}" for url in self.requests()),
            *(f"console: {text}" for text in self.complaints()),
            *(f"image: {text}" for text in self.broken_images()),
            *(
                f"contrast: {ratio:.2f}: {text}"
                for ratio, text in self.contrasts(within)
                if ratio < CONTRAST_MIN
            ),
            *(f"width: {text}" for text in self.overflows()),
        ]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened, but its own and what it holds itself."""
        self._listen()
        return [url for url in self._asked if url != self.url and not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Warnings and errors in the console since the page was opened."""
        self._listen()
        return list(self._said)

    def contrasts(self, within: str = "body") -> list[tuple[float, str]]:
        """Each text that can be seen inside ``within``, with its contrast to its background, 1 to 21."""
        return [(ratio, text) for ratio, text in self.run(_CONTRASTS, within)]

    def overflows(self) -> list[str]:
        """What does not fit: a page that must be scrolled sideways, texts that are cut off."""
        return [*self.run(_WIDE), *(f"cut off: {text}" for text in self.run(_CUT))]

    def broken_images(self) -> list[str]:
        """Images that could not be decoded."""
        return list(self.run(_BROKEN))

    def run(self, script: str, *arguments: Any) -> Any:
        """What a JavaScript returns, run in the page."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> list[Any]:
        """The elements of a CSS selector."""
        return list(self.driver.find_elements("css selector", selector))

    def text(self) -> str:
        """What a reader can see: nothing folded away."""
        return str(self.run("return document.body.innerText"))

    def unfold(self) -> None:
        """Open all that folds."""
        self.run("for (const fold of document.querySelectorAll('details')) fold.open = true")

    def screenshot(self, file: Path) -> None:
        """The whole page, however long, as PNG."""
        height = self.run("return document.documentElement.scrollHeight")
        _resize(self.driver, min(max(int(height), 100), 12_000))
        self.driver.save_screenshot(str(file))
        _resize(self.driver, HEIGHT)

    def settle(self) -> None:
        """Wait until all that was set off has been laid out."""
        if self._scripts:  # else nothing is called back, and the page is as it is
            self.driver.execute_async_script(_SETTLED)

    def _listen(self) -> None:
        self.settle()
        for message in _messages(self.driver):
            if message["method"] == "Network.requestWillBeSent":
                self._asked.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                self._asked.append(message["params"]["url"])
        for entry in self.driver.get_log("browser"):
            if entry["level"] in ("WARNING", "SEVERE"):
                self._said.append(entry["message"])


class Browser:
    """One window of Chromium that no name server answers."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver = driver
        self._folder = folder
        self._pages = 0

    def open(self, page: str | Path, *, theme: Theme = "light", scripts: bool = True) -> Page:
        """Show a page, HTML or a file of it, as to someone whose system has that theme.

        ``scripts=False``: its scripts do not run.
        """
        file = self._written(page) if isinstance(page, str) else page
        asked = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", asked)
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        self.driver.get("about:blank")  # the page before can add nothing to the logs from here on
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        opened = Page(self.driver, file.absolute().as_uri(), scripts)
        self.driver.get(opened.url)
        opened.settle()
        return opened

    def _written(self, page: str) -> Path:
        self._pages += 1
        file = self._folder / f"page-{self._pages}.html"
        file.write_text(page, encoding="utf-8")
        return file


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in ``folder``; skips where there is none to start."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    from selenium.webdriver.chrome.service import Service

    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, found in programs.items() if found is None]:
        pytest.skip(f"needs {' and '.join(missing)}: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for argument in (
        "headless=new",
        "disable-dev-shm-usage",  # containers often have 64 MB of it
        "force-device-scale-factor=1",
        "hide-scrollbars",
        "host-resolver-rules=MAP * ~NOTFOUND",
        f"user-data-dir={folder / 'profile'}",
        *(["no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    # a driver that is named is used as it is: selenium looks for no other and downloads nothing
    driver = webdriver.Chrome(options, Service(programs["chromedriver"]))
    try:
        _resize(driver, HEIGHT)
        yield Browser(driver, folder)
    finally:
        driver.quit()


def _resize(driver: Any, height: int) -> None:
    size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def _messages(driver: Any) -> Iterator[dict[str, Any]]:
    for entry in driver.get_log("performance"):
        yield json.loads(entry["message"])["message"]
