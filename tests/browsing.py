"""A browser's window on the page at /, what it shows, and what it should show."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
from playwright.sync_api import Browser, BrowserContext, Page, expect
from servers import ThreadServer, small

from m3fast import Engine, scoring

SHOWN = 0.00051  # scores are shown with three digits
WAIT = 20_000  # ms until something that should happen counts as hanging


class Visit:
    """A browser's window, and what went wrong in it.

    Attributes:
        foreign: requests to other hosts, none of which got out; asked: to the server, in order.
        errors: of the console, and uncaught exceptions.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.foreign: list[str] = []
        self.asked: list[str] = []
        self.errors: list[str] = []
        host = urlsplit(url).netloc

        def look(route, request) -> None:
            parts = urlsplit(request.url)
            if parts.scheme in ("data", "blob") or parts.netloc == host:
                self.asked.append(parts.path)
                route.continue_()
            else:
                self.foreign.append(request.url)
                route.abort()

        context.route("**/*", look)
        self.page: Page = context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append("dialog") or dialog.dismiss())
        self.page.goto(url)

    def settled(self) -> Page:
        """The page, once ranking and alignment are done."""
        expect(self.page.locator("#results")).to_have_attribute("aria-busy", "false", timeout=WAIT)
        self.page.wait_for_selector("#pair[data-aligned]")
        return self.page

    def rank(self, query: str, passages: list[str]) -> Page:
        """Type texts, rank them."""
        page = self.page
        page.get_by_role("button", name="Lines").click()
        page.get_by_label("Query", exact=True).fill(query)
        page.get_by_label("Passages, one per line").fill("\n".join(passages))
        page.get_by_role("button", name="Rank", exact=True).click()
        return self.settled()


@contextmanager
def visit(browser: Browser, url: str, **options) -> Iterator[Visit]:
    """A window of its own; at the end nothing must have been asked of another host."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    try:
        found = Visit(context, url)
        yield found
        assert found.foreign == []
    finally:
        context.close()


@contextmanager
def clean(browser: Browser, server: ThreadServer, **options) -> Iterator[Visit]:
    """The same, ranked, and without an error of any kind."""
    with visit(browser, server.url, **options) as found:
        found.settled()
        yield found
        assert found.errors == []


def texts(page: Page) -> tuple[str, list[str]]:
    cards = page.locator("#cards textarea")
    return page.locator("#query").input_value(), [c.input_value() for c in cards.all()]


def ranking(page: Page, mode: str) -> list[tuple[int, float]]:
    """(passage, score) from the first place on, as shown."""
    rows = page.locator(f".rank[data-mode={mode}] .row").evaluate_all(
        "rows => rows.map(r => [Number(r.dataset.passage), r.querySelector('.score').textContent])"
    )
    return [(i, 0.0 if text == "nothing shared" else float(text)) for i, text in rows]


def expected(query: str, passages: list[str], weights="miracl", engine: Engine | None = None):
    engine = engine or small()
    scores = scoring.all_scores(engine.encode([query]), engine.encode(passages))
    hybrid = scoring.hybrid_scores(dict(scores), weights)
    return {mode: row[0] for mode, row in {**scores, "hybrid": hybrid}.items()}


def check_ranking(page: Page, mode: str, scores: np.ndarray) -> None:
    shown = ranking(page, mode)
    assert [i for i, _ in shown] == np.argsort(-scores, kind="stable").tolist()
    np.testing.assert_allclose([s for _, s in shown], [scores[i] for i, _ in shown], atol=SHOWN)
