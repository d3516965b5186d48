"""Griffe extension: where names share an entry of a docstring, each gets its own."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

NAMES = r"((?:[a-z_]\w*|\w+Error)(?:, [a-z_]\w*)*): "
# "    a, b: text; c: text" and the lines that go on with it.
ENTRY = re.compile(rf"^( *){NAMES}(.*(?:\n\1 +\S.*)*)", re.M)
NEXT = re.compile(rf";\s+{NAMES}")
SECTION = re.compile(r"^( *)(?:Args|Attributes|Raises):\n((?:\1 +\S.*\n?)+)", re.M)


class OneEntryPerName(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = split(obj.docstring.value)


def split(docstring: str) -> str:
    """`a, b: text; c: text` as three entries, the first two of which have the same text."""

    def entries(found: re.Match[str]) -> str:
        indent, names, text = found.groups()
        parts = [names, *NEXT.split(text)]
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return "\n".join(f"{indent}{n}: {t}" for names, t in pairs for n in names.split(", "))

    return SECTION.sub(lambda found: ENTRY.sub(entries, found[0]), docstring)
