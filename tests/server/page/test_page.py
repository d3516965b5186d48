"""The page at /, in a real browser against a running server."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import checkpoints
import numpy as np
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Error,
    Locator,
    Page,
    expect,
    sync_playwright,
)
from servers import ThreadServer, running, tiny

from m3fast import Engine, scoring
from m3fast.server.routes.ops import PAGE

pytestmark = pytest.mark.slow

MODES = ("dense", "sparse", "colbert", "hybrid")
SHOWN = 0.00051  # scores are shown with three digits
WAIT = 20_000  # ms until something that should happen counts as hanging
EVIL = (
    "<script>window.hacked = 1</script>",
    '<img src=/x onerror="window.hacked = 1">',
    "\"'><svg onload=window.hacked=1></textarea><b>bold</b>",
    "${window.hacked = 1} javascript:alert(1) &lt;i&gt; </s> <s>",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = f"needs a browser: none of {', '.join(names)} is on the path"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadServer]:
    with running() as found:
        yield found


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
    engine = engine or tiny()
    scores = scoring.all_scores(engine.encode([query]), engine.encode(passages))
    hybrid = scoring.hybrid_scores(dict(scores), weights)
    return {mode: row[0] for mode, row in {**scores, "hybrid": hybrid}.items()}


def check_ranking(page: Page, mode: str, scores: np.ndarray) -> None:
    shown = ranking(page, mode)
    assert [i for i, _ in shown] == np.argsort(-scores, kind="stable").tolist()
    np.testing.assert_allclose([s for _, s in shown], [scores[i] for i, _ in shown], atol=SHOWN)


def lexical(text: str) -> dict[int, float]:
    found = tiny().encode([text], sparse=True).sparse
    assert found is not None
    return found.to_dicts()[0]


def tokens(box: Locator) -> list[dict]:
    return box.locator(".tok").evaluate_all(
        """nodes => nodes.map(n => ({
            text: n.textContent, tokens: n.dataset.tokens.split(' ').map(Number),
            glow: Number(getComputedStyle(n).getPropertyValue('--w')) }))"""
    )


def test_file_is_one_static_page() -> None:
    source = PAGE.read_text(encoding="utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in source
    assert not re.search(r"<link[^>]+stylesheet|<script[^>]+src|@import|\bstyle=|\son\w+=", source)
    hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}", source))
    assert hosts == {"http://www.w3.org"}  # the name space of SVG, never fetched


def test_opens_ranked_without_a_foreign_request(browser: Browser, server: ThreadServer) -> None:
    with clean(browser, server) as found:
        page = found.page
        query, passages = texts(page)
        assert len(passages) >= 4
        for mode, scores in expected(query, passages).items():
            check_ranking(page, mode, scores)
        info = server.get("/info").json()
        expect(page.locator("#model")).to_contain_text(f"{info['model_id']}, float32")
        expect(page.locator("#random")).to_be_hidden()
        used = int(tiny().encode([query, *passages], dense=True).n_tokens.sum())
        expect(page.locator("#timing")).to_contain_text(
            re.compile(rf"{len(passages)} passages, {used} tokens, \d+ ms.*compute [\d.]+")
        )
        assert set(found.asked) == {"/", "/info", "/score", "/tokenize", "/encode"}


def test_every_built_in_set_ranks(browser: Browser, server: ThreadServer) -> None:
    with clean(browser, server) as found:
        page = found.page
        chips = page.locator("#sets button")
        assert chips.count() >= 4
        for chip in chips.all():
            chip.click()
            found.settled()
            expect(chip).to_have_attribute("aria-pressed", "true")
            for mode, scores in expected(*texts(page)).items():
                check_ranking(page, mode, scores)
        # Of two in a row the last wins, whenever the answers come.
        held = []
        page.route("**/score", lambda r: r.fallback() if held else held.append(r))
        chips.nth(0).click()
        chips.nth(1).click()
        found.settled()
        with suppress(Error):  # the page has given this request up
            held[0].continue_()
        found.settled()
        check_ranking(page, "dense", expected(*texts(page))["dense"])
        # Arabic stands on the right.
        page.get_by_role("button", name="المكتبة").click()
        found.settled()
        first = page.locator("#top")
        assert first.evaluate("n => getComputedStyle(n).direction") == "rtl"


def test_weights_of_the_hybrid(browser: Browser, server: ThreadServer) -> None:
    with clean(browser, server) as found:
        page = found.page
        query, passages = texts(page)
        before = len(found.asked)
        choice = page.get_by_label("Weights of the hybrid")
        for name, weights in (
            ("MLDR", "mldr"),
            ("MLDR, dense + sparse", "mldr-dense-sparse"),
            ("MIRACL, dense + sparse", "miracl-dense-sparse"),
            ("MIRACL, MKQA", "miracl"),
        ):
            choice.select_option(name)
            check_ranking(page, "hybrid", expected(query, passages, weights)["hybrid"])
        page.locator("#w-dense").fill("0")
        page.locator("#w-sparse").fill("0.85")
        expect(choice).to_have_value("")
        check_ranking(page, "hybrid", expected(query, passages, (0, 0.85, 1))["hybrid"])
        page.locator("#w-sparse").fill("0")
        page.locator("#w-colbert").fill("0")
        expect(page.locator(".rank[data-mode=hybrid] .score").first).to_have_text("–")
        assert len(found.asked) == before, "weights need no request"


def test_hover_marks_a_passage_everywhere(browser: Browser, server: ThreadServer) -> None:
    with clean(browser, server) as found:
        page = found.page
        row = page.locator(".rank[data-mode=sparse] .row").nth(3)
        row.hover()
        marked = page.locator(".row.mark")
        expect(marked).to_have_count(4)
        passage = row.get_attribute("data-passage")
        assert {r.get_attribute("data-passage") for r in marked.all()} == {passage}
        expect(page.locator("#bumps path.mark")).to_have_count(1)
        page.locator("h1").hover()
        expect(marked).to_have_count(0)


def test_highlights_are_the_sparse_weights(browser: Browser, server: ThreadServer) -> None:
    query = "Why does water stay in the dishwasher?"
    passages = [
        "Water that stays in a dishwasher: clean the filter, then let new water run in.",
        "Bees carry water to the hive. A dishwasher has no bees, but water: 💧 for 2 € a day.",
    ]
    with clean(browser, server) as found:
        page = found.rank(query, passages)
        weights = [lexical(text) for text in (query, *passages)]
        most = max(max(row.values()) for row in weights)
        spans = [tiny().tokenizer.spans(text) for text in (query, *passages)]
        for n in range(1, len(spans)):
            shown = tokens(page.locator("#full .text").nth(n - 1))
            covered = [t for token in shown for t in token["tokens"]]
            assert covered == list(range(1, len(spans[n]) - 1)), "every token of the text, once"
            for token in shown:
                weight = max(weights[n].get(spans[n][t][0], 0.0) for t in token["tokens"])
                glow = 0.06 + 0.6 * weight / most if weight else 0.0
                assert token["glow"] == pytest.approx(glow, abs=1e-4)
        # The exact value on hover, and where else the token stands.
        best = int(page.locator("#pair").get_attribute("data-aligned") or "")
        ids = [number for number, _, _ in spans[best + 1]]
        both = weights[0].keys() & weights[best + 1].keys()
        t = next(i for i, a in enumerate(ids) if ids.count(a) > 1 and a in both)
        page.locator(f"#full li:nth-child({best + 1}) .tok[data-tokens='{t}']").hover()
        mine, theirs = weights[best + 1][ids[t]], weights[0][ids[t]]
        tip = page.get_by_role("tooltip")
        expect(tip).to_contain_text(f"lexical weight {mine:.4f}")
        expect(tip).to_contain_text(f"with {theirs:.4f} in the query: adds {mine * theirs:.4f}")
        again = [i for i, number in enumerate(ids) if number == ids[t] and i != t]
        same = page.locator(f"#full li:nth-child({best + 1}) .tok.same")
        assert [int(s.get_attribute("data-tokens") or "") for s in same.all()] == again
        shared = {i for i, s in enumerate(spans[0]) if s[0] in set(ids) and s[0] in weights[0]}
        underlined = page.locator("#top").locator(".shared").all()
        assert {int(s.get_attribute("data-tokens") or "") for s in underlined} == shared


def test_alignment_is_maxsim(browser: Browser, server: ThreadServer) -> None:
    with clean(browser, server) as found:
        page = found.page
        query, passages = texts(page)
        chosen = 3
        page.get_by_role("button", name=f"Align passage {chosen + 1} ").click()
        page.wait_for_selector(f"#pair[data-aligned='{chosen}']")
        vectors = tiny().encode([query, passages[chosen]], colbert=True).colbert
        assert vectors is not None
        products = vectors[0] @ vectors[1].T
        mean = products.max(axis=1).mean()
        expect(page.locator("#sum")).to_contain_text(f"{mean:.3f}: mean of {len(products)} ")
        words = page.locator("#top").locator(".tok")
        assert words.count() == len(products)
        expect(page.locator("#threads path")).to_have_count(len(products))
        seen = []
        for q, word in enumerate(words.all()):
            word.hover()
            label, hit = page.locator("#threads text"), page.locator("#pair .tok.hit")
            expect(label).to_have_count(1)
            value = label.text_content() or ""
            assert float(value) == pytest.approx(products[q].max(), abs=SHOWN)
            # Vectors begin with the second token.
            assert str(products[q].argmax() + 1) in (hit.get_attribute("data-tokens") or "").split()
            expect(page.get_by_role("tooltip")).to_contain_text(f"best match {value}")
            seen.append(int(products[q].argmax()))
        # And back: a token of the passage names all of the query's that it is the best for.
        p = max(set(seen), key=seen.count)
        page.locator("#bottom").locator(f".tok[data-tokens='{p + 1}']").hover()
        expect(page.locator("#top").locator(".hit")).to_have_count(seen.count(p))


def test_texts_are_never_markup(browser: Browser, server: ThreadServer) -> None:
    with clean(browser, server) as found:
        page = found.rank(EVIL[1], list(EVIL))
        page.get_by_role("button", name="Cards").click()
        assert texts(page) == (EVIL[1], list(EVIL))
        for mode, scores in expected(EVIL[1], list(EVIL)).items():
            check_ranking(page, mode, scores)
        for n, text in enumerate(EVIL, 1):
            assert page.locator(f"#full li:nth-child({n}) .text").text_content() == text
        for token in page.locator("#pair .tok").all()[::4]:
            token.hover()
        assert page.evaluate("window.hacked") is None
        assert page.locator("main :is(img, script, b:not(.legend b), i)").count() == 0
        # Not even where the server repeats it.
        body = {"error": {"message": EVIL[1], "type": "x", "param": None, "code": None}}
        page.route("**/score", lambda route: route.fulfill(status=400, json=body))
        page.get_by_role("button", name="Rank", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text(EVIL[1])
        assert page.evaluate("window.hacked") is None
        assert "/x" not in found.asked
        found.errors[:] = [e for e in found.errors if "status of 400" not in e]


def test_places_count_code_points(browser: Browser, server: ThreadServer) -> None:
    query = "😀 dishwasher 👩\u200d🚀 ½ error"
    passages = ["𝒳 the dishwasher 😀😀 of Zoë", "मधुमक्खी एक उड़ान", "กี่โมง", "</s>"]
    with clean(browser, server) as found:
        page = found.rank(query, passages)
        boxes = [page.locator("#top"), *page.locator("#full .text").all()]
        for text, box in zip([query, *passages], boxes, strict=True):
            end = "end" if text == query else ""
            assert box.text_content() == text + end
            spans = tiny().tokenizer.spans(text)
            for token in tokens(box):
                places = [place for t in token["tokens"] if (place := spans[t][2])]
                covered = text[min(places)[0] : max(places)[1]].lstrip() if places else end
                assert token["text"] == covered
        words = [token["text"] for token in tokens(boxes[0])]
        assert {"😀", "👩\u200d🚀", "½"} <= set(words), "what a reader sees as one is one"
        page = found.rank("\ud83d", ["a", "b"])  # half a character
        expect(page.locator(".rank[data-mode=dense] .row")).to_have_count(2)


def test_passages_are_edited(browser: Browser, server: ThreadServer) -> None:
    with clean(browser, server) as found:
        page = found.page
        query, passages = texts(page)
        page.get_by_role("button", name="Remove passage 2").click()
        expect(page.locator("#results")).to_have_class("stale")
        page.get_by_role("button", name="Add a passage").click()
        page.keyboard.type("error")
        page.keyboard.press("Control+Enter")
        page = found.settled()
        kept = [passages[0], *passages[2:], "error"]
        assert texts(page) == (query, kept)
        check_ranking(page, "hybrid", expected(query, kept)["hybrid"])
        page.get_by_role("button", name="Lines").click()
        lines = page.get_by_label("Passages, one per line")
        assert lines.input_value().split("\n") == kept
        lines.fill("one\n\n  two  \n")
        page.get_by_role("button", name="Cards").click()
        assert texts(page) == (query, ["one", "two"])
        page.get_by_label("Query", exact=True).fill(" ")
        before = len(found.asked)
        page.get_by_role("button", name="Rank", exact=True).click()
        expect(page.locator("#hint")).to_have_text("Type a query first.")
        page.get_by_label("Query", exact=True).fill("x")
        for _ in range(2):
            page.get_by_role("button", name="Remove passage 1").click()
        page.get_by_role("button", name="Rank", exact=True).click()
        expect(page.locator("#hint")).to_have_text("Add a passage first.")
        assert len(found.asked) == before


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


def test_dense_only_model(browser: Browser, tmp_path: Path) -> None:
    engine = Engine.from_pretrained(
        checkpoints.make_checkpoint(tmp_path, m3_heads=False), dtype="float32"
    )
    with running(engine, served_names=("plain",)) as server, visit(browser, server.url) as found:
        page = found.page
        page.wait_for_selector(".rank[data-mode=dense] .row")
        expect(page.get_by_text("This model has no such head")).to_have_count(2)
        scores = expected(*texts(page), engine=engine)
        check_ranking(page, "dense", scores["dense"])
        check_ranking(page, "hybrid", scores["dense"])
        expect(page.locator("#random")).to_be_hidden()
        expect(page.locator("#reading")).to_be_hidden()
        assert found.errors == []


def test_random_weights_are_named(browser: Browser, tmp_path: Path) -> None:
    folder = checkpoints.make_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"m3fast_random_weights": True}))
    engine = Engine.from_pretrained(folder, dtype="float32")
    with running(engine) as server, clean(browser, server) as found:
        expect(found.page.locator("#random")).to_be_visible()
        expect(found.page.locator("#random")).to_contain_text("random weights")


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
