"""Texts -> token ids, equal to transformers' own, from any number of threads at once.

The `tokenizers.Tokenizer` inside is set up once and never changed again: truncation is done here,
so that concurrent callers never meet a borrowed tokenizer, and a text much longer than max_length
is tokenised no further than needed (see textcut).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import numpy as np

from m3fast.errors import InputError
from m3fast.text.cuts import Allowance, TextCutter, common_start
from m3fast.text.files import TokenizerFiles, read_tokenizer
from m3fast.types import TokenIds

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from pathlib import Path

    import tokenizers
    from numpy.typing import NDArray

_DROPPED = ("cls_token", "eos_token", "pad_token", "unk_token")
# Characters and texts tokenised at once. A token costs about 140 bytes until its id is copied.
_BATCH_CHARS, _BATCH_TEXTS = 1 << 20, 1024
# Normalised characters allowed per text and per call, see `at_most`; None for any number.
_ALLOWED: ContextVar[tuple[int, int] | None] = ContextVar("allowed", default=None)
# A text of max_length tokens may have so many per token: sixteen times what most languages take.
_PER_TOKEN = 64


@contextmanager
def at_most(per_text: int, per_call: int) -> Generator[None]:
    """`Tokenizer.encode` raises TextSizeError for what would cost more normalised characters.

    Held by the context, not an argument, as callers reach `encode` by way of the engine's own.
    """
    token = _ALLOWED.set((per_text, per_call))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


class Tokenizer:
    """A checkpoint's tokenizer. Safe to share between threads.

    Attributes:
        cls_id, eos_id, pad_id, unk_id, mask_id: ids of the special tokens, None where the
            tokenizer has none; eos_id is the separator's for BERT, which has no end token.
        dropped_ids: ids that never count as words in lexical weights.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        """Take over `files.backend`, which nobody else may use: its settings are cleared."""
        self._backend = backend = files.backend
        backend.no_truncation()
        backend.no_padding()
        self._cutter = TextCutter(backend)
        self._prefix, self._suffix = _frame(backend)
        self._id_limit = 1 + max([len(self) - 1, *backend.get_added_tokens_decoder()])
        self._clean_up = files.clean_up
        special = files.special
        self.cls_id, self.pad_id = special.get("cls_token"), special.get("pad_token")
        self.unk_id, self.mask_id = special.get("unk_token"), special.get("mask_token")
        self.eos_id = special.get("eos_token", special.get("sep_token"))
        self.dropped_ids = {special[role] for role in _DROPPED if role in special}

    @classmethod
    def from_dir(cls, path: Path) -> Tokenizer:
        """Load the tokenizer of a checkpoint folder: tokenizer.json where there is one.

        Raises:
            CheckpointError: no tokenizer file in `path`, or one that cannot be read.
        """
        return cls(read_tokenizer(path))

    def encode(self, texts: Sequence[str | Sequence[int]], max_length: int) -> TokenIds:
        """Tokenise texts, cut on the right to max_length tokens with the special tokens kept.

        The ids are those of transformers' `tokenizer(text, truncation=True, max_length=...)`.
        Token ids given in place of a text are used as they are; longer than max_length, they are
        cut in the same way: their last id, the end token, stays.

        Args:
            texts: strings, or sequences of token ids with their special tokens.
            max_length: most tokens per text, special tokens included; at least 3.

        Raises:
            InputError: max_length is too small, or texts[i] is neither text nor token ids of
                this vocabulary; nothing has been tokenised then.
            TextSizeError: within `at_most`, more than that.
        """
        limit = self._check_limit(max_length)
        given = self.check(texts)
        allowance = None
        if (allowed := _ALLOWED.get()) is not None:
            most_text = max(allowed[0], _PER_TOKEN * limit)
            allowance = Allowance(self._cutter, most_text, allowed[1])
        parts: list[tuple[NDArray[np.int32], list[int], list[bool]]] = []
        done = 0
        for batch in _batches(given, limit):
            parts.append(self._rows(batch, limit, allowance, done))
            done += len(batch)
        lengths = chain.from_iterable(lengths for _, lengths, _ in parts)
        return TokenIds(
            np.concatenate([np.empty(0, np.int32), *(ids for ids, _, _ in parts)]),
            np.fromiter(accumulate(lengths, initial=0), np.int64, len(given) + 1),
            np.fromiter(chain.from_iterable(cut for _, _, cut in parts), np.bool_, len(given)),
        )

    def check(self, texts: Sequence[str | Sequence[int]]) -> list[str | list[int]]:
        """The texts as a list, or the error that `encode` would raise for them."""
        return [self._check(i, text) for i, text in enumerate(texts)]

    def spans(
        self, text: str, *, special: bool = True
    ) -> list[tuple[int, str, tuple[int, int] | None]]:
        """(id, piece, (start, stop) in characters of the text or None) of each token, uncut.

        Args:
            special: add the tokens around a text, which stand nowhere in it: None.

        Raises:
            InputError: as `encode` for this text.
        """
        found = self._backend.encode(self.check([text])[0], add_special_tokens=special)
        return [
            (number, piece, None if added else (start, stop))
            for number, piece, (start, stop), added in zip(
                found.ids, found.tokens, found.offsets, found.special_tokens_mask, strict=True
            )
        ]

    def size(self, text: str, most: int) -> int:
        """Characters of the normalised text, or, where there are more than `most`, more."""
        return self._cutter.normal_size(text, most)

    def decode(self, ids: int | Iterable[int]) -> str:
        """Text of one id or several, special tokens included."""
        text = self._backend.decode(_as_ids(ids), skip_special_tokens=False)
        return _cleaned(text) if self._clean_up else text

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> str | list[str | None] | None:
        """The piece of each id, None for an id without one; a single id gives a single piece."""
        pieces = [self._backend.id_to_token(i) for i in _as_ids(ids)]
        return pieces[0] if isinstance(ids, int | np.integer) else pieces

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def __len__(self) -> int:
        """Number of tokens, added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the model, without added ones."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def _rows(
        self, texts: list[str | list[int]], limit: int, allowance: Allowance | None, first: int
    ) -> tuple[NDArray[np.int32], list[int], list[bool]]:
        """Ids end to end, lengths, and which texts were cut, of texts[first:] of a call."""
        begin, end = self._prefix, self._suffix
        keep = limit - len(begin) - len(end)
        strings = {first + i: t for i, t in enumerate(texts) if isinstance(t, str)}
        contents = self._contents(strings, keep, allowance)
        rows: list[list[int]] = []
        cut: list[bool] = []
        for i, text in enumerate(texts, first):
            if isinstance(text, str):
                rows.append(begin + contents[i][:keep] + end)
                cut.append(len(contents[i]) > keep)
            else:
                tail = max(1, len(end))
                cut.append(len(text) > limit)
                rows.append(text[: limit - tail] + text[-tail:] if cut[-1] else text)
        lengths = [len(row) for row in rows]
        return np.fromiter(chain.from_iterable(rows), np.int32, sum(lengths)), lengths, cut

    def _contents(
        self, texts: dict[int, str], keep: int, allowance: Allowance | None
    ) -> dict[int, list[int]]:
        """Ids of each text without special tokens: all of them, or more than `keep`."""
        found: dict[int, list[int]] = {}
        sizes = {i: _first_size(text, keep) for i, text in texts.items()}
        most = None if allowance is None else allowance.most_text
        windows = 2  # rounds in which a text may be tokenised to all the ends of a window
        while sizes:
            starts = {
                i: self._cutter.starts(texts[i], n, windows > 0, most) for i, n in sizes.items()
            }
            if allowance is not None:
                for i, some in starts.items():
                    allowance.spend(i, some[-1])
            shared = self._shared({i: some[:2] for i, some in starts.items()})
            # Where two ends of a window share too little, all of them cannot share more.
            rest = {i: s[2:] for i, s in starts.items() if len(s) > 2 and len(shared[i]) > keep}
            for i, ids in self._shared(rest).items():
                shared[i] = common_start([shared[i], ids])
            wanted, sizes = sizes, {}
            for i, ids in shared.items():
                whole = starts[i] == [texts[i]]
                if whole or len(ids) > keep:
                    found[i] = ids[: keep + 1]
                else:
                    growth = 1.2 * (keep + 1) / max(1, len(ids))
                    sizes[i] = int(wanted[i] * min(8, max(2, growth)))
            windows -= 1
        return found

    def _shared(self, starts: dict[int, list[str]]) -> dict[int, list[int]]:
        """What the ids of each text's starts have in common."""
        batch = [start for some in starts.values() for start in some]
        encodings = iter(self._backend.encode_batch_fast(batch, add_special_tokens=False))
        return {i: common_start([next(encodings).ids for _ in some]) for i, some in starts.items()}

    def _check_limit(self, max_length: int) -> int:
        least = max(3, len(self._prefix) + len(self._suffix) + 1)
        if not isinstance(max_length, int | np.integer):
            raise InputError(f"max_length: expected an int, found {_name(max_length)}")
        if max_length < least:
            raise InputError(f"max_length: expected at least {least}, found {max_length}")
        return operator.index(max_length)

    def _check(self, i: int, text: Any) -> str | list[int]:
        """texts[i] as a str, or as a list of ids."""
        if isinstance(text, str):
            try:
                _ = text.isascii() or text.encode()
            except UnicodeEncodeError as error:
                found = f"a lone surrogate U+{ord(text[error.start]):04X} at {error.start}"
                raise InputError(f"texts[{i}]: expected Unicode text, found {found}") from None
            return text
        wanted = f"texts[{i}]: expected a str or a sequence of token ids, found"
        if not isinstance(text, Sequence | np.ndarray) or isinstance(text, bytes | bytearray):
            raise InputError(f"{wanted} {_name(text)}")
        try:
            ids: NDArray[Any] = np.asarray(text)
        except (ValueError, OverflowError):  # ragged lists, integers beyond any id
            ids = np.empty((0, 0))
        if ids.size == 0 and ids.ndim == 1:
            raise InputError(f"{wanted} an empty {_name(text)}")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InputError(f"{wanted} a {_name(text)} that is not a flat one of ids")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self._id_limit:
            bad = low if low < 0 else high
            raise InputError(
                f"texts[{i}]: expected ids from 0 to {self._id_limit - 1}, found {bad}"
            )
        flat: list[int] = ids.tolist()
        return flat


def _batches(texts: list[str | list[int]], limit: int) -> Iterator[list[str | list[int]]]:
    """Consecutive texts, as many as are tokenised at once."""
    batch: list[str | list[int]] = []
    chars = 0
    for text in texts:
        if batch and (chars > _BATCH_CHARS or len(batch) == _BATCH_TEXTS):
            yield batch
            batch, chars = [], 0
        batch.append(text)
        chars += min(len(text), _first_size(text, limit)) if isinstance(text, str) else 0
    if batch:
        yield batch


def _first_size(text: str, keep: int) -> int:
    """Characters likely to hold more than `keep` tokens.

    The 95th percentile on XQuAD is 4.9 characters per XLM-R token in alphabets, 1.7 in Chinese.
    """
    wide = sum(c >= "\u2e80" for c in text[:32]) > 8
    return 64 + keep * (2 if wide else 5)


def _frame(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the post-processor puts before and after a text."""
    encoding = backend.encode("a")
    mask = encoding.special_tokens_mask
    first = mask.index(0) if 0 in mask else len(mask)
    last = len(mask) - mask[::-1].index(0) if 0 in mask else first
    return encoding.ids[:first], encoding.ids[last:]


def _as_ids(ids: int | Iterable[int]) -> list[int]:
    return [int(ids)] if isinstance(ids, int | np.integer) else [int(i) for i in ids]


def _cleaned(text: str) -> str:
    """The spaces that transformers' `clean_up_tokenization_spaces` takes away, in its order."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def _name(value: object) -> str:
    return "None" if value is None else type(value).__name__
