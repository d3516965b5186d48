"""Reads training files and makes batches of texts of like length from them.

A line is a JSON object in FlagEmbedding's format, `{"query": str, "pos": [str, ...], "neg": [str,
...]}` with `neg` optional, or `{"text": str}` for a text that only the outside teacher is learnt
from; a file holds lines of one kind. A string `lang` is optional: batches then keep to a language,
whose passages are harder to tell apart. Other keys are left alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from m3fast.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from m3fast.train.config import DataFile, TrainConfig

# Batches sorted by length together: more give less padding, fewer more chance.
WINDOW = 64
# UTF-8 bytes per token of XLM-R's vocabulary: 4 in English, 4.5 in Chinese, 7 in Russian.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts of one step.

    Attributes:
        queries: nq texts, none where the file has only texts.
        passages: the positive of each query first, in the queries' order, then the negatives.
        file: which `[[data]]` they are from.
        teacher: float32 [nq + np, D], rows of queries then passages; None without a teacher.
    """

    queries: list[str]
    passages: list[str]
    file: int
    teacher: NDArray[np.float32] | None


class Examples:
    """One training file in memory.

    Raises:
        InputError: a line that is not as the format says, naming file and line; a teacher whose
            rows are not as many as the texts.
    """

    def __init__(self, data: DataFile, negatives: int = 0) -> None:
        self.data = data
        self.rows: list[list[str]] = []  # a text; or a query, its positives, its negatives
        self.positives: list[int] = []  # 0 for a text
        languages: list[str] = []
        with data.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row, positives, language = _read(line, f"{data.path}:{number}")
                    self.rows.append(row)
                    self.positives.append(positives)
                    languages.append(language)
        if not self.rows:
            raise InputError(f"{data.path}: expected lines, found none")
        if (0 in self.positives) and any(self.positives):
            raise InputError(f"{data.path}: expected lines of one kind, found texts and pairs")
        self.pairs = self.positives[0] > 0
        names = {name: i for i, name in enumerate(dict.fromkeys(languages))}
        self.language = np.array([names[name] for name in languages])
        self.tokens = np.array(
            [_estimate(row, p, negatives) for row, p in zip(self.rows, self.positives, strict=True)]
        )
        self.offsets = np.concatenate([[0], np.cumsum([len(row) for row in self.rows])])
        self.teacher: NDArray[np.floating] | None = None
        if data.teacher is not None:
            self.teacher = _load_teacher(data.teacher, int(self.offsets[-1]))

    def epoch(self, config: TrainConfig, seed: list[int]) -> list[NDArray[np.int64]]:
        """All rows once, as batches in random order."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.rows))
        batches: list[NDArray[np.int64]] = []
        window = WINDOW * config.batch_pairs
        for start in range(0, len(order), window):
            part = order[start : start + window]
            # Languages in another order each time, so that their ends meet other neighbours.
            language = rng.permutation(int(self.language.max()) + 1)[self.language[part]]
            part = part[np.lexsort((self.tokens[part], language))]
            batches += self._cut(part, config)
        return [batches[i] for i in rng.permutation(len(batches))]

    def _cut(self, part: NDArray[np.int64], config: TrainConfig) -> list[NDArray[np.int64]]:
        cap = config.query_length + config.passage_length * (1 + config.negatives)
        batches: list[NDArray[np.int64]] = []
        begin, total = 0, 0
        for end, tokens in enumerate(np.minimum(self.tokens[part], cap)):
            full = end - begin == config.batch_pairs or total + tokens > config.batch_tokens
            if end > begin and full:
                batches.append(part[begin:end])
                begin, total = end, 0
            total += tokens
        return [*batches, part[begin:]]

    def batch(
        self, rows: NDArray[np.int64], file: int, negatives: int, seed: list[int]
    ) -> TextBatch:
        """Texts of rows, a positive and negatives of each drawn at random."""
        if not self.pairs:
            return TextBatch(
                [], [self.rows[i][0] for i in rows], file, self._vectors(self.offsets[rows])
            )
        rng = np.random.default_rng(seed)
        positives: list[tuple[int, int]] = []
        others: list[tuple[int, int]] = []
        for i in rows.tolist():
            given, count = self.positives[i], len(self.rows[i]) - 1 - self.positives[i]
            positives.append((i, 1 + int(rng.integers(given))))
            chosen = rng.choice(count, min(negatives, count), replace=False) if negatives else ()
            others += [(i, 1 + given + int(j)) for j in chosen]
        passages = [*positives, *others]
        places = [(int(i), 0) for i in rows] + passages
        wanted = np.array([self.offsets[i] + j for i, j in places])
        return TextBatch(
            [self.rows[i][0] for i in rows],
            [self.rows[i][j] for i, j in passages],
            file,
            self._vectors(wanted),
        )

    def _vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        return None if self.teacher is None else self.teacher[rows].astype(np.float32)


class Batches:
    """An endless row of batches, each of one file, which a seed decides.

    Its state is what `load_state` goes on from, with the same batches as if never interrupted.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.files = [Examples(data, config.negatives) for data in config.data]
        weights = np.array([data.weight for data in config.data])
        self._share = weights / weights.sum()
        self.step = 0
        self._epochs, self._used = [0] * len(self.files), [0] * len(self.files)
        self._orders = [file.epoch(config, self._seed(i)) for i, file in enumerate(self.files)]

    def _seed(self, file: int) -> list[int]:
        return [self._config.seed, file, self._epochs[file]]

    def __next__(self) -> TextBatch:
        seed = [self._config.seed, 1 << 20, self.step]
        file = int(np.random.default_rng(seed).choice(len(self.files), p=self._share))
        if self._used[file] == len(self._orders[file]):
            self._epochs[file] += 1
            self._used[file] = 0
            self._orders[file] = self.files[file].epoch(self._config, self._seed(file))
        rows = self._orders[file][self._used[file]]
        self._used[file] += 1
        self.step += 1
        return self.files[file].batch(rows, file, self._config.negatives, [*seed, 1])

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "epochs": list(self._epochs), "used": list(self._used)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self._epochs, self._used = state["step"], state["epochs"], state["used"]
        for i, file in enumerate(self.files):
            self._orders[i] = file.epoch(self._config, self._seed(i))
            if self._used[i] > len(self._orders[i]):
                raise InputError(
                    f"{file.data.path}: expected its lines as when the run began, found fewer"
                )


def _load_teacher(file: Path, texts: int) -> NDArray[np.floating]:
    try:
        teacher: Any = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file}: expected an array of numpy, found {error}") from error
    if not isinstance(teacher, np.ndarray):
        raise InputError(f"{file}: expected one array, found an archive of several")
    if teacher.ndim != 2 or len(teacher) != texts or teacher.dtype.kind != "f":
        found = f"{teacher.dtype} {teacher.shape}"
        raise InputError(f"{file}: expected floats of shape ({texts}, D), found {found}")
    return teacher


def _read(line: bytes, where: str) -> tuple[list[str], int, str]:
    """Texts, how many of them are positives, and the language or ''."""
    try:
        row = json.loads(line.decode())
    except ValueError as error:
        raise InputError(f"{where}: expected JSON, found {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, found {type(row).__name__}")
    language = row.get("lang", "")
    if not isinstance(language, str):
        raise InputError(f"{where}: lang: expected a str, found {language!r}")
    if isinstance(text := row.get("text"), str):
        return _unicode([text], where), 0, language
    query, positives, negatives = row.get("query"), row.get("pos"), row.get("neg") or []
    if not isinstance(query, str):
        raise InputError(f"{where}: expected a str 'query' or 'text', found {query!r}")
    for name, texts in (("pos", positives), ("neg", negatives)):
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise InputError(f"{where}: {name}: expected a list of str, found {texts!r}")
    if not positives:
        raise InputError(f"{where}: pos: expected at least one passage, found none")
    return _unicode([query, *positives, *negatives], where), len(positives), language


def _unicode(texts: list[str], where: str) -> list[str]:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: expected Unicode, found half a surrogate pair") from None
    return texts


def _estimate(row: list[str], positives: int, negatives: int) -> int:
    """Tokens of a text, or of a query, a positive and negatives as long as it."""
    used = row[:1] + row[1:2] * (1 + min(negatives, len(row) - 1 - positives)) if positives else row
    return sum(3 + len(text.encode()) // BYTES_PER_TOKEN for text in used)
