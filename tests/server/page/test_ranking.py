"""The page ranks passages as the library does."""

import json
import re
from contextlib import suppress
from pathlib import Path

import checkpoints
import pytest
from browsing import check_ranking, clean, expected, texts, visit
from playwright.sync_api import Browser, Error, expect
from servers import ThreadServer, running, small

from m3fast import Engine

pytestmark = pytest.mark.slow


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
        used = int(small().encode([query, *passages], dense=True).n_tokens.sum())
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
