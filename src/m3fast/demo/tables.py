"""The demo's tables: rich on a terminal, plain text 100 columns wide in a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from m3fast.demo.corpus import HYBRID_WEIGHTS, TITLES, first_hits, quality, ranking
from m3fast.scoring import PAPER_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from m3fast.demo.corpus import Corpus
    from m3fast.demo.parity import Parity

    Orders = Mapping[str, NDArray[np.int64]]

WIDTH, SHOWN = 100, 3
LANGUAGES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "ja": "Japanese",
    "ko": "Korean",
    "ru": "Russian",
    "th": "Thai",
    "tr": "Turkish",
    "zh": "Chinese",
}


def make_console() -> Console:
    """A console that never fails on a character the output's encoding lacks."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def print_rankings(
    console: Console, corpus: Corpus, scores: Mapping[str, NDArray[np.float32]]
) -> None:
    """Per query one table: the best passages of each mode, answers marked."""
    orders = {mode: ranking(values) for mode, values in scores.items()}
    hits = {mode: first_hits(mode, values, corpus.queries) for mode, values in scores.items()}
    last, mark = list(scores)[-1], "*" if console.options.ascii_only else "✓"
    for n, query in enumerate(corpus.queries):
        answers = ", ".join(corpus.passages[i].id for i in sorted(query.relevant))
        console.print()
        console.print(Text(f"{n + 1}. {LANGUAGES[query.lang]}  {query.text}", style="bold"))
        across = "in other languages only" if corpus.crosses(query) else "also in this language"
        console.print(Text(f"   answered by {answers} ({across})", style="dim"))
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
        table.add_column("#", no_wrap=True)
        for mode in scores:
            table.add_column(TITLES[mode], no_wrap=True)
        for rank in range(SHOWN):
            cells = [
                _cell(corpus, mode, scores[mode], orders[mode], n, rank, mark) for mode in scores
            ]
            table.add_row(str(rank + 1), *cells)
        places = (f"rank {hits[mode][n] or '-'}" for mode in scores)
        table.add_row(mark, *places, style="dim")
        console.print(table)
        best = corpus.passages[int(orders[last][n, 0])]
        line = Text(f"   {TITLES[last]} 1: {best.text}")
        line.truncate(WIDTH - 2, overflow="ellipsis")
        console.print(line)


def _cell(
    corpus: Corpus,
    mode: str,
    scores: NDArray[np.float32],
    order: NDArray[np.int64],
    n: int,
    rank: int,
    mark: str,
) -> Text:
    i = int(order[n, rank])
    if mode == "sparse" and scores[n, i] == 0:
        return Text("  -")  # shares no token with the query
    hit = i in corpus.queries[n].relevant
    text = f"{mark if hit else ' '} {corpus.passages[i].id:<13} {scores[n, i]:.3f}"
    return Text(text, style="bold green" if hit else "")


def print_quality(
    console: Console, corpus: Corpus, scores: Mapping[str, NDArray[np.float32]]
) -> None:
    """R@1 and MRR per mode: all queries, and apart those whose language has an answer or not."""
    crosses = [corpus.crosses(query) for query in corpus.queries]
    groups = {
        "all": list(range(len(crosses))),
        "same language": [i for i, cross in enumerate(crosses) if not cross],
        "across": [i for i, cross in enumerate(crosses) if cross],
    }
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2))
    table.add_column("\nmode", no_wrap=True)
    for group, rows in groups.items():
        table.add_column(f"{group} ({len(rows)})\nR@1", justify="right", no_wrap=True)
        table.add_column("\nMRR", justify="right")
    for mode, values in scores.items():
        hits = first_hits(mode, values, corpus.queries)
        found = [quality([hits[i] for i in rows]) for rows in groups.values()]
        cells = [f"{value:.2f}" for q in found for value in (q.recall_at_1, q.mrr)]
        table.add_row(TITLES[mode], *cells)
    console.print(table)
    if "hybrid" in scores:
        weights = ", ".join(f"{w:g}" for w in PAPER_WEIGHTS[HYBRID_WEIGHTS])
        console.print(f"hybrid: weighted mean of dense, sparse, multi-vector at {weights}")


def print_parity(console: Console, parities: Mapping[str, Parity], n_texts: int) -> None:
    """Largest absolute differences per engine dtype."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2))
    table.add_column("engine dtype")
    for title in ("dense", "sparse", "multi-vector", "same sparse ids"):
        table.add_column(title, justify="right")
    for name, p in parities.items():
        differences = (f"{value:.1e}" for value in (p.dense, p.sparse, p.colbert))
        table.add_row(name, *differences, f"{p.same_ids} of {n_texts} texts")
    console.print(table)
