"""Training files and the batches made of them."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training import write_lines

from m3fast.errors import InputError
from m3fast.train import DataFile, TrainConfig
from m3fast.train.data import Batches, Examples, TextBatch

ROW = {"query": "q", "pos": ["p"]}


def config(*data: DataFile, **values: Any) -> TrainConfig:
    return TrainConfig("m3fast-tiny", Path("out"), data, 5, **values)


def rows(n: int, *, languages: int = 1, negatives: int = 3) -> list[dict[str, Any]]:
    """Pairs whose texts say who they are: q7, p7.0, p7.1, n7.0, ... and a filler of any length."""
    random = np.random.default_rng(n)
    made = []
    for i in range(n):
        fill = " " + "x" * int(random.integers(200))
        made.append(
            {
                "query": f"q{i}{fill}",
                "pos": [f"p{i}.{j}{fill}" for j in range(1 + i % 2)],
                "neg": [f"n{i}.{j}{fill}" for j in range(negatives - i % 2)],
                "lang": f"l{i % languages}",
            }
        )
    return made


def key(text: str) -> str:
    return text.split()[0]


def owner(text: str) -> int:
    return int(key(text)[1:].split(".")[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: expected JSON, found "),
        ("[1]", ":2: expected an object, found list"),
        ("{}", ":2: expected a str 'query' or 'text', found None"),
        ('{"query": 1, "pos": ["a"]}', ":2: expected a str 'query' or 'text', found 1"),
        ('{"text": 1}', ":2: expected a str 'query' or 'text'"),
        ('{"query": "a"}', ":2: pos: expected a list of str, found None"),
        ('{"query": "a", "pos": "b"}', ":2: pos: expected a list of str, found 'b'"),
        ('{"query": "a", "pos": []}', ":2: pos: expected at least one passage, found none"),
        ('{"query": "a", "pos": ["b", 1]}', ":2: pos: expected a list of str"),
        ('{"query": "a", "pos": ["b"], "neg": "c"}', ":2: neg: expected a list of str"),
        ('{"query": "a", "pos": ["b"], "neg": [null]}', ":2: neg: expected a list of str"),
        ('{"query": "a", "pos": ["b"], "lang": 3}', ":2: lang: expected a str, found 3"),
        ('{"query": "a", "pos": ["\\ud800"]}', ":2: expected Unicode, found half a surrogate"),
        ('{"text": "\\udfff"}', ":2: expected Unicode, found half a surrogate pair"),
        ('{"text": "a"}', ": expected lines of one kind, found texts and pairs"),
    ],
)
def test_broken_lines(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(InputError) as error:
        Examples(DataFile(file))
    assert f"{file}{message}" in str(error.value)


def test_broken_files(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n  \n")
    with pytest.raises(InputError, match=r"a.jsonl: expected lines, found none"):
        Examples(DataFile(file))
    file.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(InputError, match=r"a.jsonl:1: expected JSON, found 'utf-8' codec"):
        Examples(DataFile(file))


def test_flagembeddings_own_files(tmp_path: Path) -> None:
    """Scores for its distillation, prompts and types are left alone; blank lines do not count."""
    file = tmp_path / "a.jsonl"
    extra = {"pos_scores": [0.9], "neg_scores": None, "prompt": "find:", "type": "normal", "id": 3}
    first = ROW | {"neg": ["n", "m"]} | extra | {"neg_scores": [0.1, 0.2]}
    second = ROW | {"neg": None} | extra
    file.write_text(json.dumps(first) + "\r\n\n" + json.dumps(second))
    found = Examples(DataFile(file))
    assert found.rows == [["q", "p", "n", "m"], ["q", "p"]]
    assert found.positives == [1, 1]


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros((3, 4)))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an array of numpy, found "),
        (b"text", "expected an array of numpy, found "),
        (npz(), "expected one array, found an archive"),
        (
            npy(np.zeros((2, 4), np.float32)),
            r"expected floats of shape (3, D), found float32 (2, 4)",
        ),
        (npy(np.zeros(3)), "expected floats of shape (3, D), found float64 (3,)"),
        (npy(np.zeros((3, 4), np.int32)), "expected floats of shape (3, D), found int32 (3, 4)"),
    ],
)
def test_broken_teachers(tmp_path: Path, content: bytes, message: str) -> None:
    file = write_lines(tmp_path / "a.jsonl", [ROW | {"neg": ["n"]}])
    teacher = tmp_path / "a.npy"
    teacher.write_bytes(content)
    with pytest.raises(InputError) as error:
        Examples(DataFile(file, teacher=teacher))
    assert str(error.value).startswith(f"{teacher}: ") and message in str(error.value)


def drain(batches: Batches, file: Examples, seen: int) -> list[TextBatch]:
    """The next batches, until they hold as many queries as the file has rows."""
    found, count = [], 0
    while count < seen * len(file.rows):
        found.append(next(batches))
        count += len(found[-1].queries or found[-1].passages)
    return found


def test_each_epoch_takes_every_row_once(tmp_path: Path) -> None:
    data = DataFile(write_lines(tmp_path / "a.jsonl", rows(203, languages=3)))
    batches = Batches(config(data, batch_pairs=16, batch_tokens=1000, negatives=2))
    firsts, chosen = [], Counter()
    for _ in range(3):
        count: Counter[int] = Counter()
        epoch = drain(batches, batches.files[0], 1)
        firsts.append([key(q) for q in epoch[0].queries])
        for batch in epoch:
            owners = [owner(q) for q in batch.queries]
            count.update(owners)
            n = len(owners)
            assert 1 <= n <= 16
            # The positives in the queries' order, then at most two different negatives of each.
            assert [owner(p) for p in batch.passages[:n]] == owners
            assert all(key(p)[0] == "p" for p in batch.passages[:n])
            negatives = [key(p) for p in batch.passages[n:]]
            assert len(set(negatives)) == len(negatives) == 2 * n
            assert {name[0] for name in negatives} <= {"n"}
            assert Counter(int(name[1:].split(".")[0]) for name in negatives) == dict.fromkeys(
                owners, 2
            )
            chosen.update(key(p) for p in batch.passages)
        assert count == dict.fromkeys(range(203), 1)
    assert firsts[0] != firsts[1] != firsts[2]
    # Among three epochs every second positive and every third negative came up somewhere.
    assert any(name.startswith("p") and name.endswith(".1") for name in chosen)
    assert {name.split(".")[1] for name in chosen if name[0] == "n"} == {"0", "1", "2"}


def test_fewer_negatives_than_asked_for(tmp_path: Path) -> None:
    data = DataFile(write_lines(tmp_path / "a.jsonl", [ROW, ROW | {"neg": ["n", "m"]}]))
    batch = next(Batches(config(data, negatives=5)))
    assert batch.passages[:2] == ["p", "p"]
    assert sorted(batch.passages[2:]) == ["m", "n"]
    assert next(Batches(config(data))).passages == ["p", "p"]


@pytest.mark.parametrize("negatives", [0, 2])
def test_token_cap(tmp_path: Path, negatives: int) -> None:
    """By the estimate of 3 + bytes // 4 a text; negatives count. A longer row goes alone."""
    made = rows(150, negatives=4)
    made.append({"query": "q150", "pos": ["p150 " + "y" * 9000]})
    data = DataFile(write_lines(tmp_path / "a.jsonl", made))
    cap = 700
    values = dict(batch_tokens=cap, negatives=negatives, passage_length=5000)
    batches = Batches(config(data, **values))
    sizes = []
    for batch in drain(batches, batches.files[0], 1):
        tokens = sum(3 + len(text) // 4 for text in batch.queries + batch.passages)
        # A name is as long as the positive that stands for it, but for a digit or two.
        assert tokens <= cap + len(batch.passages) or len(batch.queries) == 1
        sizes.append(tokens)
    full = [size for size in sizes if size <= cap]
    assert np.median(full) > 0.6 * cap  # the cap, not something smaller, cut them


def test_lengths_and_languages_keep_together(tmp_path: Path) -> None:
    made = rows(640, languages=4)
    data = DataFile(write_lines(tmp_path / "a.jsonl", made))
    batches = Batches(config(data, batch_pairs=16, batch_tokens=10**9))
    epoch = drain(batches, batches.files[0], 1)
    languages = [{owner(q) % 4 for q in batch.queries} for batch in epoch]
    # Ends of a language meet another's: of 4 languages in a window, 3 batches.
    assert sum(len(found) > 1 for found in languages) <= 3
    spread = np.mean([np.ptp([len(q) for q in batch.queries]) for batch in epoch])
    assert spread < 50  # of 200 in the file; at random it is about 170


def test_teacher_rows_belong_to_their_texts(tmp_path: Path) -> None:
    made = rows(97)
    file = write_lines(tmp_path / "a.jsonl", made)
    texts = [text for row in made for text in [row["query"], *row["pos"], *row["neg"]]]
    numbers = {text: i for i, text in enumerate(texts)}
    vectors = np.stack([np.arange(len(texts)), np.full(len(texts), 7)], 1).astype(np.float16)
    np.save(tmp_path / "a.npy", vectors)
    batches = Batches(
        config(DataFile(file, teacher=tmp_path / "a.npy"), batch_pairs=8, negatives=2)
    )
    for batch in drain(batches, batches.files[0], 2):
        assert batch.teacher is not None and batch.teacher.dtype == np.float32
        wanted = [numbers[text] for text in batch.queries + batch.passages]
        assert batch.teacher[:, 0].tolist() == wanted
        assert (batch.teacher[:, 1] == 7).all()


def test_texts(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"text": f"t{i} " + "x" * i} for i in range(50)])
    np.save(tmp_path / "a.npy", np.arange(100.0).reshape(50, 2))
    batches = Batches(config(DataFile(file, teacher=tmp_path / "a.npy"), batch_pairs=8))
    seen = []
    for batch in drain(batches, batches.files[0], 1):
        assert batch.queries == [] and batch.teacher is not None
        seen += [owner(text) for text in batch.passages]
        assert batch.teacher[:, 0].tolist() == [2 * owner(text) for text in batch.passages]
    assert sorted(seen) == list(range(50))


def test_weights_of_files(tmp_path: Path) -> None:
    files = [
        DataFile(write_lines(tmp_path / f"{i}.jsonl", [ROW | {"query": f"q{i}"}]), weight=weight)
        for i, weight in enumerate((3.0, 1.0))
    ]
    batches = Batches(config(*files))
    found = [next(batches) for _ in range(400)]
    assert all(batch.queries == [f"q{batch.file}"] for batch in found)
    assert 260 < sum(batch.file == 0 for batch in found) < 340


def test_state(tmp_path: Path) -> None:
    files = [DataFile(write_lines(tmp_path / f"{n}.jsonl", rows(n))) for n in (40, 31)]
    made = config(*files, batch_pairs=7, negatives=1)
    batches = Batches(made)
    for step in (0, 1, 5, 23):
        while batches.step < step:
            next(batches)
        state = json.loads(json.dumps(batches.state()))
        again = Batches(made)
        again.load_state(state)
        ahead = Batches(made)
        ahead.load_state(json.loads(json.dumps(state)))
        wanted = [next(again) for _ in range(30)]
        assert [next(ahead) for _ in range(30)] == wanted
        if step == 0:
            whole = wanted
        elif step < 30:
            assert wanted[: 30 - step] == whole[step:]
    other = Batches(config(*files, batch_pairs=7, negatives=1, seed=1))
    assert [next(other) for _ in range(5)] != whole[:5]


def test_lines_gone_since_the_state(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", rows(30))
    made = config(DataFile(file), batch_pairs=5)
    batches = Batches(made)
    for _ in range(5):
        next(batches)
    write_lines(file, rows(10))
    with pytest.raises(InputError, match="expected its lines as when the run began"):
        Batches(made).load_state(batches.state())
