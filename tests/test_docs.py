"""What people read: links, anchors and pictures that exist, every page in the site's navigation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "src/m3fast/data/m3fast-tiny/README.md",
    *sorted(DOCS.rglob("*.md")),
]
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.M | re.S)
TARGET = re.compile(r"]\((?!https?:)([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Names of a page's headings as GitHub and the site give them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in TARGET.findall(CODE.sub("``", page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file), f"{target} has no such heading"


def test_readme_takes_three_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_every_page_is_in_the_navigation() -> None:
    _, _, nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")
    pages = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}
    assert pages
    assert pages <= set(re.findall(r"\S+\.md", nav))


def test_every_decision_is_in_the_index() -> None:
    decisions = {p.name for p in (DOCS / "adr").glob("[0-9]*.md")}
    assert decisions
    index = (DOCS / "adr/README.md").read_text(encoding="utf-8")
    assert decisions == {name for name in TARGET.findall(index) if name[0].isdigit()}
