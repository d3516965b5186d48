"""The drop-in's scores, of pairs of texts, of token vectors and of lexical weights."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from m3fast.errors import InputError
from m3fast.flag.pool import serve
from m3fast.flag.resources import Resources, no_kwargs
from m3fast.inputs import check_positive
from m3fast.scoring import SCORES, all_scores, check_weights, combine, distinct_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from m3fast.engine.engine import Engine
    from m3fast.flag.pool import Pool
    from m3fast.types import Embeddings

Pairs = list[tuple[str, str]] | tuple[str, str]


class PairScores(Resources):
    """The scoring half of `BGEM3FlagModel`."""

    def compute_score(
        self,
        sentence_pairs: Pairs,
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any] | list[Any]:
        """Scores of (query, passage) pairs in every mode.

        Args:
            sentence_pairs: P pairs, or one pair.
            batch_size: pairs worked on at a time.
            max_query_length, max_passage_length: tokens per text.
            weights_for_different_modes: (dense, sparse, colbert), default (1, 1, 1).

        Returns:
            Lists of P floats under `colbert`, `sparse`, `dense`, `sparse+dense`,
            `colbert+sparse+dense`; plain floats for one pair; `[]` for an empty list. MaxSim is
            taken over real tokens only, the value that `colbert_score` gives.
        """
        options: dict[str, Any] = {
            "batch_size": self.batch_size if batch_size is None else batch_size,
            "max_query_length": (
                self.query_max_length if max_query_length is None else max_query_length
            ),
            "max_passage_length": (
                self.passage_max_length if max_passage_length is None else max_passage_length
            ),
            "weights_for_different_modes": weights_for_different_modes,
            **kwargs,
        }
        pairs, one_pair = check_sentence_pairs(sentence_pairs)
        if one_pair or len(self.target_devices) == 1 or not pairs:
            return self.compute_score_single_device(
                sentence_pairs, device=self.target_devices[0], **options
            )
        self._check_open()
        pool = self.start_multi_process_pool(type(self)._compute_score_multi_process_worker)
        try:
            return self.compute_score_multi_process(pairs, pool, **options)
        finally:
            self.stop_multi_process_pool(pool)

    def compute_score_single_device(
        self,
        sentence_pairs: Pairs,
        batch_size: int = 256,
        max_query_length: int = 512,
        max_passage_length: int = 512,
        weights_for_different_modes: Sequence[float] | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any] | list[Any]:
        """Score on one device; arguments and result as in `compute_score`."""
        no_kwargs(kwargs)
        pairs, one_pair = check_sentence_pairs(sentence_pairs)
        given = weights_for_different_modes
        weights = list(check_weights((1.0, 1.0, 1.0) if given is None else given).values())
        check_positive("batch_size", batch_size)
        if not pairs:
            return []
        engine = self._engine(device)
        scores: dict[str, list[float]] = {key: [] for key in SCORES}
        for start in range(0, len(pairs), batch_size):
            queries, passages, rows = distinct_texts(pairs[start : start + batch_size])
            found = all_scores(
                _encode_all(engine, queries, max_query_length),
                _encode_all(engine, passages, max_passage_length),
                rows,
            )
            for key, values in combine(found, weights).items():
                scores[key] += values.tolist()
        return {key: values[0] for key, values in scores.items()} if one_pair else scores

    def colbert_score(self, q_reps: NDArray[Any], p_reps: NDArray[Any]) -> torch.Tensor:
        """Mean over query tokens of the best product with a passage token, a 0-d tensor.

        Args:
            q_reps: [n_q, D]; p_reps: [n_p, D], as in `colbert_vecs`.
        """
        products = torch.from_numpy(q_reps) @ torch.from_numpy(p_reps).T
        return products.amax(-1).sum() / len(q_reps)

    def compute_lexical_matching_score(
        self,
        lexical_weights_1: dict[str, float] | list[dict[str, float]],
        lexical_weights_2: dict[str, float] | list[dict[str, float]],
    ) -> Any:
        """Sum of products over shared keys: a scalar for two dicts, [n, m] for two lists.

        Raises:
            InputError: one dict and one list, or something else.
        """
        return lexical_matching_score(lexical_weights_1, lexical_weights_2)

    def compute_score_multi_process(
        self, pairs: Pairs, pool: Pool, **kwargs: Any
    ) -> dict[str, list[float]]:
        """`compute_score_single_device` spread over a pool, in input order."""
        parts = pool.map(check_sentence_pairs(pairs)[0], kwargs)
        return {key: [x for part in parts for x in part[key]] for key in SCORES}

    @staticmethod
    def _compute_score_multi_process_worker(
        device: str, model: PairScores, jobs: Any, done: Any
    ) -> None:
        serve(jobs, done, partial(model.compute_score_single_device, device=device))


def _encode_all(engine: Engine, texts: list[str], max_length: int) -> Embeddings:
    return engine.encode(
        texts, dense=True, sparse=True, colbert=True, max_length=max_length, prompt_name=""
    )


def check_sentence_pairs(pairs: Any) -> tuple[list[tuple[str, str]], bool]:
    """(list of pairs, whether a single pair was given), or InputError naming the pair."""
    if isinstance(pairs, np.ndarray):
        pairs = pairs.tolist()
    if not isinstance(pairs, list | tuple):
        raise InputError(
            f"sentence_pairs: expected a list of (query, passage), found {type(pairs).__name__}"
        )
    one_pair = len(pairs) > 0 and isinstance(pairs[0], str)
    listed: Any = [pairs] if one_pair else pairs
    for i, pair in enumerate(listed):
        good = isinstance(pair, list | tuple) and len(pair) == 2
        if not good or not all(isinstance(text, str) for text in pair):
            raise InputError(f"sentence_pairs[{i}]: expected two str, found {pair!r:.80}")
    return [tuple(pair) for pair in listed], one_pair


def lexical_matching_score(first: Any, second: Any) -> Any:
    """See `BGEM3FlagModel.compute_lexical_matching_score`; keys may be ids or tokens."""
    if isinstance(first, dict) and isinstance(second, dict):
        return sum(weight * second[key] for key, weight in first.items() if key in second)
    if not isinstance(first, list) or not isinstance(second, list):
        raise InputError(
            "lexical_weights_1, lexical_weights_2: expected two dicts or two lists, found "
            f"{type(first).__name__} and {type(second).__name__}"
        )
    from scipy.sparse import csr_array

    columns: dict[Any, int] = {}
    for row in (*first, *second):
        for key in row:
            columns.setdefault(key, len(columns))

    def matrix(rows: list[dict[Any, Any]]) -> Any:
        # float64, as the reference gives wherever a score is 0; scipy has no float16.
        values = np.array([w for row in rows for w in row.values()], np.float64)
        indptr = np.cumsum([0, *map(len, rows)])
        indices = np.array([columns[key] for row in rows for key in row], np.int64)
        return csr_array((values, indices, indptr), shape=(len(rows), max(1, len(columns))))

    return (matrix(first) @ matrix(second).T).toarray()
