"""MkDocs hooks: README and its like become pages; links that leave docs/ become plain text."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {  # file in the repository -> page
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "src/m3fast/data/m3fast-tiny/README.md": "tiny.md",
}
FILES = {page: file for file, page in PAGES.items()}
# Code first, so that what looks like a link in it is passed over.
LINK = re.compile(r"^```.*?^```|`[^`\n]+`|(!?\[((?:[^][]|\[[^][]*])*)]\()([^)\s]+)\)", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> None:
    for file, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    return rewritten(markdown, page.file.src_uri)


def rewritten(markdown: str, page: str) -> str:
    """A page's text with the links of its source file made to hold on the site.

    Args:
        page: path below docs/, or one of PAGES.
    """
    source = FILES.get(page, f"docs/{page}")

    def link(found: re.Match[str]) -> str:
        start, text, target = found.groups()
        path, _, anchor = (target or "").partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (file in PAGES or file.startswith("docs/")):
            if not (ROOT / file).exists():
                raise PluginError(f"{source}: expected a file at {target}, found none")
            return f"`{file}`" if file in text else f"{text} (`{file}`)"
        to = PAGES.get(file) or file.removeprefix("docs/")
        to = posixpath.relpath(to, posixpath.dirname(page) or ".")
        return f"{start}{to}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(link, markdown)
