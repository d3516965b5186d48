"""A checkpoint's tokenizer: texts to token ids, equal to transformers', from any thread.

The `tokenizers.Tokenizer` inside is set up once and never changed again: truncation is done here,
so that concurrent callers never meet a borrowed tokenizer, and a text much longer than max_length
is tokenized no further than needed (see `m3fast.text.cuts`).
"""

from __future__ import annotations

import operator
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import numpy as np

from m3fast.errors import InputError
from m3fast.inputs import CheckedTexts, check_text, type_name
from m3fast.text.allowance import Allowance, allowance_of_call
from m3fast.text.cuts import TextCutter, common_start
from m3fast.text.files import TokenizerFiles, read_tokenizer
from m3fast.types import TokenIds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import tokenizers
    from numpy.typing import NDArray

    from m3fast.inputs import Texts

_DROPPED = ("cls_token", "eos_token", "pad_token", "unk_token")
# Characters and texts tokenized at once. A token costs about 140 bytes until its id is copied.
_BATCH_CHARS, _BATCH_TEXTS = 1 << 20, 1024


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

    def encode(self, texts: Texts, max_length: int) -> TokenIds:
        """Tokenize texts, cut on the right to max_length tokens with the special tokens kept.

        The ids are those of transformers' `tokenizer(text, truncation=True, max_length=...)`.
        Token ids given in place of a text are used as they are; longer than max_length, they are
        cut in the same way: their last id, the end token, stays.

        Args:
            texts: strings, or sequences of token ids with their special tokens.
            max_length: most tokens per text, special tokens included; at least 3.

        Raises:
            InputError: max_length is too small, or texts[i] is neither text nor token ids of
                this vocabulary; nothing has been tokenized then.
            TextSizeError: within `at_most`, more than that.
        """
        limit = self._check_limit(max_length)
        given = self.check(texts)
        allowance = allowance_of_call(self._cutter, limit)
        parts: list[tuple[NDArray[np.int32], list[int], list[bool]]] = []
        done = 0
        for batch in _batches(given, limit):
            parts.append(self._rows(batch, limit, allowance, done))
            done += len(batch)
        ids = [ids for ids, _, _ in parts] or [np.empty(0, np.int32)]
        lengths = chain.from_iterable(lengths for _, lengths, _ in parts)
        return TokenIds(
            ids[0] if len(ids) == 1 else np.concatenate(ids),
            np.fromiter(accumulate(lengths, initial=0), np.int64, len(given) + 1),
            np.fromiter(chain.from_iterable(cut for _, _, cut in parts), np.bool_, len(given)),
        )

    def check(self, texts: Texts) -> CheckedTexts:
        """The texts in the type that `encode` takes on trust; one that is of it is returned.

        Raises:
            InputError: texts[i] is neither text nor token ids of this vocabulary.
        """
        if isinstance(texts, CheckedTexts):
            return texts
        return CheckedTexts(check_text(i, text, self._id_limit) for i, text in enumerate(texts))

    def spans(
        self, text: str, *, special: bool = True
    ) -> list[tuple[int, str, tuple[int, int] | None]]:
        """(id, piece, (start, stop) in characters of the text or None) of each token, uncut.

        Args:
            special: add the tokens around a text, which stand nowhere in it: None.

        Raises:
            InputError: as `encode` for this text.
        """
        self.check([text])
        found = self._backend.encode(text, add_special_tokens=special)
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
        self, texts: CheckedTexts, limit: int, allowance: Allowance | None, first: int
    ) -> tuple[NDArray[np.int32], list[int], list[bool]]:
        """Ids end to end, lengths, and which texts were cut, of texts[first:] of a call."""
        begin, end = self._prefix, self._suffix
        keep, tail = limit - len(begin) - len(end), max(1, len(end))
        strings = {first + i: t for i, t in enumerate(texts) if isinstance(t, str)}
        contents = self._contents(strings, keep, allowance)
        rows: list[list[int] | NDArray[np.int32]] = []
        cut: list[bool] = []
        for i, text in enumerate(texts, first):
            if isinstance(text, str):
                rows.append(begin + contents[i][:keep] + end)
                cut.append(len(contents[i]) > keep)
            else:
                cut.append(len(text) > limit)
                if cut[-1]:
                    text = np.concatenate([text[: limit - tail], text[-tail:]])
                rows.append(text)
        lengths = [len(row) for row in rows]
        if len(strings) == len(texts):
            ids = np.fromiter(chain.from_iterable(rows), np.int32, sum(lengths))
        else:
            ids = np.concatenate([np.asarray(row, np.int32) for row in rows])
        return ids, lengths, cut

    def _contents(
        self, texts: dict[int, str], keep: int, allowance: Allowance | None
    ) -> dict[int, list[int]]:
        """Ids of each text without special tokens: all of them, or more than `keep`."""
        found: dict[int, list[int]] = {}
        sizes = {i: _first_size(text, keep) for i, text in texts.items()}
        most = None if allowance is None else allowance.most_text
        windows = 2  # rounds in which a text may be tokenized to all the ends of a window
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
            raise InputError(f"max_length: expected an int, found {type_name(max_length)}")
        if max_length < least:
            raise InputError(f"max_length: expected at least {least}, found {max_length}")
        return operator.index(max_length)



def _batches(texts: CheckedTexts, limit: int) -> Iterator[CheckedTexts]:
    """Consecutive texts, as many as are tokenized at once."""
    batch = CheckedTexts()
    chars = 0
    for text in texts:
        if batch and (chars > _BATCH_CHARS or len(batch) == _BATCH_TEXTS):
            yield batch
            batch, chars = CheckedTexts(), 0
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
