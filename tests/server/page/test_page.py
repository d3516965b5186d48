"""The page itself: one file, keys, errors, layout, keyboard."""

import re

import numpy as np
import pytest
from browsing import Visit, check_ranking, clean, expected, ranking, texts, visit
from playwright.sync_api import Browser, expect
from servers import ThreadServer, running

from m3fast.server.routes.ops import PAGE

pytestmark = pytest.mark.slow


def test_file_is_one_static_page() -> None:
    source = PAGE.read_text(encoding="utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in source
    assert not re.search(r"<link[^>]+stylesheet|<script[^>]+src|@import|\bstyle=|\son\w+=", source)
    hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}", source))
    assert hosts == {"http://www.w3.org"}  # the name space of SVG, never fetched


def test_asks_for_a_key_and_keeps_it_in_the_tab(browser: Browser) -> None:
    with (
        running(api_keys=("right",)) as server,
        visit(browser, server.url) as found,
    ):
        page = found.page
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("asks for a key")
        assert page.get_by_label("API key").get_attribute("type") == "password"
        for wrong in ("wrong", "no header holds ö"):
            page.get_by_label("API key").fill(wrong)
            page.get_by_role("button", name="Use it").click()
            expect(alert).to_contain_text("does not know this key")
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type("right")
        page.keyboard.press("Enter")
        found.settled()
        expect(alert).to_be_hidden()
        check_ranking(page, "hybrid", expected(*texts(page))["hybrid"])
        assert page.evaluate("Object.values(sessionStorage)") == ["right"]
        assert page.evaluate("localStorage.length + document.cookie + location.search") == "0"
        page.reload()
        found.settled()
        page.get_by_role("button", name="Forget the key").click()
        expect(alert).to_contain_text("asks for a key")
        assert page.evaluate("sessionStorage.length") == 0


def test_troubles_in_plain_words(browser: Browser) -> None:
    with running(max_body=4000) as server, visit(browser, server.url) as found:
        page = found.settled()
        alert, go = page.get_by_role("alert"), page.get_by_role("button", name="Rank", exact=True)
        service = server.service
        service.active += service.settings.max_requests
        go.click()
        expect(alert).to_contain_text("too much to do. Try again in 1 s.")
        service.active -= service.settings.max_requests
        page.get_by_role("button", name="Try again").click()
        expect(alert).to_be_hidden()
        service.warm = False
        go.click()
        expect(alert).to_contain_text("not ready")
        service.warm = True
        expect(alert).to_be_hidden()  # without a click
        page.get_by_role("button", name="Lines").click()
        page.get_by_label("Passages, one per line").fill("word " * 1000)
        go.click()
        expect(alert).to_contain_text("more text than the server takes")
        page.get_by_label("Passages, one per line").fill("word")
        go.click()
        expect(alert).to_be_hidden()
        page.route("**/score", lambda route: route.fulfill(status=200, body="<html>a proxy"))
        go.click()
        expect(alert).to_contain_text("Something went wrong")
        page.unroute("**/score")
        page.route("**/score", lambda route: route.fulfill(status=504, json={}))
        go.click()
        expect(alert).to_contain_text("ran out of time")
        page.unroute("**/score")
        go.click()
        expect(alert).to_be_hidden()


def test_server_that_is_gone(browser: Browser) -> None:
    with running() as server:
        context = browser.new_context()
        found = Visit(context, server.url)
        page = found.settled()
        before = ranking(page, "hybrid")
    page.get_by_role("button", name="Rank", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
    expect(page.locator("#model")).to_have_text("Not connected")
    assert ranking(page, "hybrid") == before
    context.close()


@pytest.mark.parametrize("width", [320, 390, 768, 1100])
def test_no_width_scrolls_sideways(browser: Browser, server: ThreadServer, width: int) -> None:
    with clean(browser, server, viewport={"width": width, "height": 800}, has_touch=True) as found:
        page = found.page
        page.locator("#pair .tok").nth(2).tap()
        expect(page.get_by_role("tooltip")).to_be_visible()
        for query, passages in ((None, None), ("w" * 300, ["unbroken" * 60, "b"])):
            if query is not None:
                found.rank(query, passages)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        for name in ("Rank", "Lines", "Cards"):
            box = page.get_by_role("button", name=name, exact=True).bounding_box()
            assert box and box["x"] >= 0 and box["x"] + box["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(
    browser: Browser, server: ThreadServer, scheme: str
) -> None:
    with clean(browser, server, color_scheme=scheme) as found:
        page = found.page
        page.locator("#pair .tok").first.hover()
        places = (
            ("body", "body"), ("#timing", "body"), ("#random", "#random"), ("#query", "#query"),
            (".row .say", ".row"), (".row .no", ".row"), (".legend", ".pair"), ("#go", "#go"),
            ("#tip .soft", "#tip"), ("#sets [aria-pressed=true]", "#sets [aria-pressed=true]"),
        )  # fmt: skip
        for text, ground in places:
            colours = page.evaluate(
                """([text, ground]) => [getComputedStyle(document.querySelector(text)).color,
                    getComputedStyle(document.querySelector(ground)).backgroundColor]""",
                [text, ground],
            )
            front, back = (luminance(colour) for colour in colours)
            assert (max(front, back) + 0.05) / (min(front, back) + 0.05) >= 4.5, text
            if text in ("body", ".row .say"):
                assert (front > back) == (scheme == "dark")


def luminance(colour: str) -> float:
    """Of an opaque CSS colour, as WCAG defines it."""
    parts = [float(x) / 255 for x in re.findall(r"[\d.]+", colour)]
    assert len(parts) == 3, colour
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_keyboard_alone(browser: Browser, server: ThreadServer) -> None:
    with clean(browser, server) as found:
        page = found.page

        def tab_to(selector: str) -> None:
            for _ in range(80):
                page.keyboard.press("Tab")
                if page.evaluate("s => document.activeElement.matches(s)", selector):
                    return
            pytest.fail(f"Tab does not reach {selector}")

        tab_to("#query")
        page.keyboard.press("Control+A")
        page.keyboard.type("bees dance")
        page.keyboard.press("Control+Enter")
        found.settled()
        query, passages = texts(page)
        assert query == "bees dance"
        check_ranking(page, "hybrid", expected(query, passages)["hybrid"])
        tab_to("#w-sparse")
        page.keyboard.press("End")
        check_ranking(page, "hybrid", expected(query, passages, (1, 1, 1))["hybrid"])
        tab_to(".row")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        row = page.locator(".row:focus")
        passage = row.get_attribute("data-passage")
        assert row.evaluate("r => r.closest('.rank').dataset.mode") == "colbert"
        expect(page.locator(".row.mark")).to_have_count(4)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#pair[data-aligned='{passage}']")
        expect(page.locator(f".row[aria-current][data-passage='{passage}']")).to_have_count(4)
        tab_to("#pair .tok")
        page.keyboard.press("ArrowRight")
        tip = page.get_by_role("tooltip")
        expect(tip).to_contain_text("best match")
        expect(page.locator("#threads text")).to_have_count(1)
        word = page.locator("#pair .tok:focus").get_attribute("data-tokens")
        page.keyboard.press("Tab")  # to the passage's tokens, another text
        assert page.locator("#bottom :focus").count() == 1
        page.keyboard.press("Shift+Tab")
        expect(page.locator("#top .tok:focus")).to_have_attribute("data-tokens", word or "")
        page.keyboard.press("Escape")
        expect(tip).to_be_hidden()
        unnamed = page.locator("button, input, select, textarea").evaluate_all(
            """nodes => nodes.filter(n => n.checkVisibility() && !n.textContent.trim()
                && !n.getAttribute('aria-label') && !(n.labels && n.labels.length)).length"""
        )
        assert unnamed == 0
