"""Vectors of the outside teacher, for every text of files that `m3fast train` reads.

    python scripts/tiny/teacher.py E5 DATA.jsonl ...

E5 is multilingual-e5-small (MIT; Wang et al., arXiv 2402.05672), as e5.py writes it. It asks for
"query: " before a query and "passage: " before a passage, which the model to be trained shall do
without; a text that is neither counts as a query.

Writes DATA.teacher.npy beside each file: float16 [texts, 384], one row per text in file order (of
a pair its query, then its passages). Its vectors all lie in one narrow cone, and those of one
language and role in a narrower one: no cosine is below 0.7. So of each vector the mean of its
language and role is taken away, and the rest is normalised: what is left says what a text is about,
and hardly in which language.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3fast import Engine

CHUNK = 20_000  # texts
LEAST = 200  # texts of a language and role for a mean of their own


class Role(NamedTuple):
    """What a text is to the teacher."""

    prefix: str
    language: str
    text: str


def texts_of(path: Path) -> list[Role]:
    """The texts of a training file, in the order in which its teacher's rows stand."""
    texts: list[Role] = []
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            first, second = row.get("languages") or [row.get("lang", "")] * 2
            if "text" in row:
                texts.append(Role("query: ", first, row["text"]))
                continue
            texts.append(Role("query: ", first, row["query"]))
            passages = [*row["pos"], *row.get("neg", [])]
            texts += [Role("passage: ", second, text) for text in passages]
    return texts


def encode(engine: Engine, roles: list[Role]) -> NDArray[np.float16]:
    """The teacher's own vectors: float16 [len(roles), 384]."""
    parts: list[NDArray[np.float16]] = []
    for i in range(0, len(roles), CHUNK):
        found = engine.encode(
            [role.prefix + role.text for role in roles[i : i + CHUNK]],
            max_length=256,
        )
        assert found.dense is not None
        parts.append(found.dense.astype(np.float16))
        print(f"{min(i + CHUNK, len(roles)):,} of {len(roles):,} texts", flush=True)
    return np.concatenate(parts)


def centred(vectors: NDArray[np.float16], roles: list[Role]) -> NDArray[np.float16]:
    """Vectors less the mean of their language and role, of length 1."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, role in enumerate(roles):
        groups[role.prefix, role.language].append(i)
    out = vectors.astype(np.float32)
    whole = {p: out[[r.prefix == p for r in roles]].mean(0) for p in {r.prefix for r in roles}}
    for (prefix, _), rows in groups.items():
        out[rows] -= out[rows].mean(0) if len(rows) >= LEAST else whole[prefix]
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out.astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description="Teacher vectors of training files.")
    parser.add_argument("e5")
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    by_file = {path: texts_of(path) for path in args.files}
    unique = list(dict.fromkeys(role for roles in by_file.values() for role in roles))
    row_of = {role: i for i, role in enumerate(unique)}
    vectors = centred(encode(Engine.from_pretrained(args.e5, device="cpu"), unique), unique)
    for path, roles in by_file.items():
        chosen = np.fromiter((row_of[role] for role in roles), np.int64, len(roles))
        np.save(path.with_suffix(".teacher.npy"), vectors[chosen])
        print(f"{path.with_suffix('.teacher.npy').name}: {len(chosen):,} rows")


if __name__ == "__main__":
    main()
