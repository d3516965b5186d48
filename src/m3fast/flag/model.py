"""`BGEM3FlagModel`, with FlagEmbedding 1.4.2's names, arguments, keys, types and shapes.

The reference is `FlagEmbedding.inference.embedder.encoder_only.m3.M3Embedder`. Departures on
purpose are listed in docs/flagembedding.md.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from m3fast.errors import InputError
from m3fast.flag.pool import serve
from m3fast.flag.resources import no_kwargs
from m3fast.flag.scores import PairScores
from m3fast.inputs import check_positive, check_texts, narrowed
from m3fast.kernels.sparse import fill_dicts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from m3fast.flag.pool import Pool
    from m3fast.types import SparseRows

Encoded = dict[str, Any]


class BGEM3FlagModel(PairScores):
    """Drop-in for FlagEmbedding's class of the same name.

    On a CPU everything is float32, as there, unless `use_bf16=True`. On CUDA, `use_bf16` wins over
    `use_fp16`; fp16 gives float16 dense vectors and weights, bf16 gives float32.

    Args:
        model_name_or_path: hub id, local folder, or `m3fast-tiny`.
        normalize_embeddings: L2-normalise dense and colbert vectors.
        use_fp16, use_bf16: dtype on a GPU; bf16 is honoured on a CPU too.
        query_instruction_for_retrieval: put before each query with `query_instruction_format`.
        devices: `"cpu"`, `"cuda:0"`, an int, or a list of them (one process each); None for all
            CUDA devices, else the CPU.
        pooling_method: `cls`, `mean`, `last_token` or `mcls` (a CLS every 256 tokens, their mean).
        trust_remote_code: no code of a model is ever run; accepted for compatibility.
        cache_dir: hub cache.
        colbert_dim: rows expected of colbert_linear.pt; -1 for what it has.
        batch_size: most texts per batch; within it batches are formed by tokens.
        query_max_length, passage_max_length: tokens per text, special tokens included.
        return_dense, return_sparse, return_colbert_vecs: outputs unless a call says otherwise.
        truncate_dim: keep this many leading dimensions; not used by `compute_score`.
        **kwargs: `passage_instruction_for_retrieval`, `passage_instruction_format`, `device`;
            `dtype`, as `Engine.from_pretrained` takes it, goes before `use_fp16` and `use_bf16`.

    Raises:
        CheckpointError: the model is missing or broken.
        InputError: an argument is out of range.
    """

    def encode_queries(
        self,
        queries: list[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **kwargs: Any,
    ) -> Encoded:
        """`encode` with the query instruction and `query_max_length`."""
        return self.encode(
            queries,
            batch_size,
            self.query_max_length if max_length is None else max_length,
            return_dense,
            return_sparse,
            return_colbert_vecs,
            instruction=self.query_instruction_for_retrieval,
            instruction_format=self.query_instruction_format,
            **kwargs,
        )

    def encode_corpus(
        self,
        corpus: list[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **kwargs: Any,
    ) -> Encoded:
        """`encode` with the passage instruction, if one was given to the constructor."""
        return self.encode(
            corpus,
            batch_size,
            max_length,
            return_dense,
            return_sparse,
            return_colbert_vecs,
            instruction=self.kwargs.get("passage_instruction_for_retrieval"),
            instruction_format=self.kwargs.get("passage_instruction_format", "{}{}"),
            **kwargs,
        )

    def encode(
        self,
        sentences: list[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        instruction: str | None = None,
        instruction_format: str | None = None,
        **kwargs: Any,
    ) -> Encoded:
        """Encode texts; None stands for the constructor's value.

        Returns:
            `dense_vecs` [N, H], `lexical_weights` N x defaultdict {str(token id): numpy scalar},
            `colbert_vecs` N x [n_tokens - 1, D], in input order; None where not asked for. For a
            single str the same without the outer axis.

        Raises:
            InputError: an argument is not as described.
        """
        one = isinstance(sentences, str)
        texts: list[Any] = list(_check_sentences(sentences))
        if instruction is not None:
            template = "{}{}" if instruction_format is None else instruction_format
            for i, text in enumerate(texts):
                if not isinstance(text, str):
                    raise InputError(
                        f"sentences[{i}]: expected a str to put an instruction before, "
                        f"found {type(text).__name__}"
                    )
                texts[i] = self.get_detailed_instruct(template, instruction, text)
        options: dict[str, Any] = {
            "batch_size": self.batch_size if batch_size is None else batch_size,
            "max_length": self.passage_max_length if max_length is None else max_length,
            "return_dense": self.return_dense if return_dense is None else return_dense,
            "return_sparse": self.return_sparse if return_sparse is None else return_sparse,
            "return_colbert_vecs": (
                self.return_colbert_vecs if return_colbert_vecs is None else return_colbert_vecs
            ),
            **kwargs,
        }
        if one or len(self.target_devices) == 1 or not texts:
            given = texts[0] if one else texts
            return self.encode_single_device(given, device=self.target_devices[0], **options)
        with self._lock:
            self._check_open()
            if self.pool is None:
                self.pool = self.start_multi_process_pool(type(self)._encode_multi_process_worker)
            pool = self.pool
        return self.encode_multi_process(texts, pool, **options)

    def encode_single_device(
        self,
        sentences: list[str] | str,
        batch_size: int = 256,
        max_length: int = 512,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        device: str | None = None,
        **kwargs: Any,
    ) -> Encoded:
        """Encode on one device; arguments and result as in `encode`."""
        kwargs.pop("convert_to_numpy", None)  # the reference takes it and ignores it
        no_kwargs(kwargs)
        check_positive("batch_size", batch_size)
        engine = self._engine(device)
        found = engine.encode(
            _check_sentences(sentences),
            dense=bool(return_dense),
            sparse=bool(return_sparse),
            colbert=bool(return_colbert_vecs),
            max_length=max_length,
            max_texts=batch_size,
            truncate_dim=self.truncate_dim,
            prompt_name="",  # here a text's beginning is the caller's business
        )
        half = "float16" if engine.dtype == torch.float16 else "float32"
        encoded: Encoded = {
            "dense_vecs": None if found.dense is None else narrowed(found.dense, half, "use_fp16"),
            "lexical_weights": None if found.sparse is None else self._dicts(found.sparse, half),
            "colbert_vecs": None if found.colbert is None else list(found.colbert),
        }
        if isinstance(sentences, str):
            return {key: None if rows is None else rows[0] for key, rows in encoded.items()}
        return encoded

    @cached_property
    def _id_names(self) -> list[str]:
        # One str per vocabulary entry, shared by all dicts: half the cost of making them is str().
        return [str(i) for i in range(self._engine(None).config.vocab_size)]

    def _dicts(self, rows: SparseRows, dtype: str) -> list[dict[str, Any]]:
        dicts: list[dict[str, Any]] = [defaultdict(int) for _ in range(len(rows))]
        values = list(narrowed(rows.values, dtype, "use_fp16"))
        fill_dicts(dicts, rows.indptr, rows.indices, self._id_names, values)
        return dicts

    def convert_id_to_token(
        self, lexical_weights: dict[str, Any] | list[dict[str, Any]]
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """The same weights keyed by token text; a dict, or a list of one, gives a dict."""
        rows = [lexical_weights] if isinstance(lexical_weights, dict) else lexical_weights
        decode = self._engine(None).tokenizer.decode
        named = [{decode([int(i)]): weight for i, weight in row.items()} for row in rows]
        return named[0] if len(named) == 1 else named

    @staticmethod
    def get_detailed_instruct(instruction_format: str, instruction: str, sentence: str) -> str:
        """Instruction and sentence put into the format, where a literal `\\n` is a line break."""
        return instruction_format.replace("\\n", "\n").format(instruction, sentence)

    def encode_multi_process(self, sentences: list[str], pool: Pool, **kwargs: Any) -> Encoded:
        """`encode_single_device` spread over a pool, in input order."""
        texts = self._engine(None).tokenizer.check(_check_sentences(sentences))
        parts = pool.map(texts, kwargs)
        merged: Encoded = {}
        for key, first in parts[0].items():
            rows = [part[key] for part in parts]
            if first is None:
                merged[key] = None
            elif key == "dense_vecs":
                merged[key] = np.concatenate(rows)
            else:
                merged[key] = [row for part in rows for row in part]
        return merged

    @staticmethod
    def _encode_multi_process_worker(
        device: str, model: BGEM3FlagModel, jobs: Any, done: Any
    ) -> None:
        serve(jobs, done, partial(model.encode_single_device, device=device))


def _check_sentences(sentences: Any) -> Sequence[str | Sequence[int]]:
    return check_texts(sentences, "sentences", iterator_hint="make a list of an iterator")
