"""The page shows tokens, their weights and their alignment as the library has them."""

import pytest
from browsing import SHOWN, check_ranking, clean, expected, texts
from playwright.sync_api import Browser, Locator, expect
from servers import ThreadServer, small

pytestmark = pytest.mark.slow

EVIL = (
    "<script>window.hacked = 1</script>",
    '<img src=/x onerror="window.hacked = 1">',
    "\"'><svg onload=window.hacked=1></textarea><b>bold</b>",
    "${window.hacked = 1} javascript:alert(1) &lt;i&gt; </s> <s>",
)


def lexical(text: str) -> dict[int, float]:
    found = small().encode([text], sparse=True).sparse
    assert found is not None
    return found.to_dicts()[0]


def tokens(box: Locator) -> list[dict]:
    return box.locator(".tok").evaluate_all(
        """nodes => nodes.map(n => ({
            text: n.textContent, tokens: n.dataset.tokens.split(' ').map(Number),
            glow: Number(getComputedStyle(n).getPropertyValue('--w')) }))"""
    )


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
        spans = [small().tokenizer.spans(text) for text in (query, *passages)]
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
        vectors = small().encode([query, passages[chosen]], colbert=True).colbert
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
            spans = small().tokenizer.spans(text)
            for token in tokens(box):
                places = [place for t in token["tokens"] if (place := spans[t][2])]
                covered = text[min(places)[0] : max(places)[1]].lstrip() if places else end
                assert token["text"] == covered
        words = [token["text"] for token in tokens(boxes[0])]
        assert {"😀", "👩\u200d🚀", "½"} <= set(words), "what a reader sees as one is one"
        page = found.rank("\ud83d", ["a", "b"])  # half a character
        expect(page.locator(".rank[data-mode=dense] .row")).to_have_count(2)
