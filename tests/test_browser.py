"""Pages as readers see them, in Chromium: the harness finds what is wrong, and with ours nothing is."""

from __future__ import annotations

import pytest
from browser import Browser

TIP = "<details><summary>More</summary><p>Folded away</p></details>"
RED = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="


def page(body: str, head: str = "") -> str:
    return f"<!doctype html><html><head><meta charset=utf-8>{head}</head><body>{body}</body></html>"


# ---- each check can fail


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_good_page_has_no_problems(browser: Browser, theme: str) -> None:
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
