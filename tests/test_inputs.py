"""What may stand in place of a list of texts, without their packages being imported."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import small_folder

import m3fast
from m3fast.errors import InputError
from m3fast.inputs import check_texts

pa = pytest.importorskip("pyarrow")
pd = pytest.importorskip("pandas")

# One that numpy's fixed width would cut, one that it would fill, one beyond 16 bits.
TEXTS = ["a text", " two\n", "", "今天天气很好", "nan", "🦊 x" * 9]


class Polars:
    """What polars documents of a Series: a dtype without numpy's kind, and to_list."""

    dtype = "String"

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def to_list(self) -> list[Any]:
        return self.values


def text_type(kind: Any) -> Callable[[list[Any]], Any]:
    return lambda values: pa.array(values, kind)


def pandas_of(kind: Any) -> Callable[[list[Any]], Any]:
    return lambda values: pd.Series(values, index=range(5, 5 + len(values)), dtype=kind)


COLUMNS: dict[str, Callable[[list[Any]], Any]] = {
    "series": pandas_of(None),
    "series of objects": pandas_of(object),
    "series of string": pandas_of("string"),
    "series of categories": pandas_of("category"),
    "series of arrow strings": pandas_of(pd.ArrowDtype(pa.string())),
    "series of arrow views": pandas_of(pd.ArrowDtype(pa.string_view())),
    "index": lambda values: pd.Index(values),
    "series' array": lambda values: pd.Series(values).array,
    "numpy objects": lambda values: np.array(values, object),
    "numpy strings": lambda values: np.array(values, np.dtypes.StringDType(na_object=None)),
    "arrow": text_type(pa.string()),
    "arrow large": text_type(pa.large_string()),
    "arrow view": text_type(pa.string_view()),
    "arrow dictionary": lambda values: pa.array(values, pa.string()).dictionary_encode(),
    "arrow chunks": lambda values: pa.chunked_array([values[:2], values[2:]], pa.string()),
    "table's column": lambda values: pa.table({"a": values})["a"],
    "polars": Polars,
}


@pytest.fixture(scope="module")
def engine() -> m3fast.Engine:
    return m3fast.Engine.from_pretrained(small_folder(), dtype="float32")


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_a_column_of_texts_is_the_list_of_them(make: Callable[[list[Any]], Any]) -> None:
    found = check_texts(make(TEXTS))
    assert isinstance(found, list)
    assert found == TEXTS
    assert all(isinstance(text, str) for text in found)


def test_fixed_width_text_is_the_list_of_it() -> None:
    assert check_texts(np.array(TEXTS)) == TEXTS
    assert check_texts(np.array(TEXTS)[::-2]) == TEXTS[::-2]
    assert check_texts(np.array(TEXTS)[:0]) == []


@pytest.mark.parametrize(
    "empty",
    [[], (), np.array([]), pd.Series([]), pd.Series([], dtype=float), pa.array([]), Polars([])],
)
def test_a_column_of_nothing_is_no_texts(empty: Any) -> None:
    assert len(check_texts(empty)) == 0


def test_lists_and_single_texts_stay_what_they_are() -> None:
    for given in (TEXTS, tuple(TEXTS), [[0, 5, 2]], [np.array([0, 5, 2])], [None]):
        assert check_texts(given) is given
    assert check_texts("one") == ["one"]
    assert check_texts(np.str_("one")) == ["one"]


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_a_missing_text_is_named_by_its_place(
    make: Callable[[list[Any]], Any], engine: m3fast.Engine
) -> None:
    with pytest.raises(InputError, match=r"^texts\[2\]: expected a str or .*, found "):
        engine.encode(make(["a", "b", None, "c"]))


def test_a_missing_text_in_a_series_is_no_text(engine: m3fast.Engine) -> None:
    for missing in (None, float("nan"), pd.NA):
        for kind in (None, object, "string", "category"):
            with pytest.raises(InputError, match=r"^texts\[1\]: expected a str"):
                engine.encode(pd.Series(["a", missing], dtype=kind))  # type: ignore[call-overload]


def test_a_masked_text_is_missing(engine: m3fast.Engine) -> None:
    masked: Any = np.ma.MaskedArray(["a", "b"], mask=[False, True])
    with pytest.raises(InputError, match=r"^texts\[1\]: expected a str .*, found None"):
        engine.encode(masked)


def test_ids_in_a_column_stay_ids(engine: m3fast.Engine) -> None:
    ids: list[Any] = [[0, 5, 2], [0, 7, 8, 2]]
    expected = engine.encode(ids).dense
    for column in (pd.Series(ids), pa.array(ids)):
        np.testing.assert_array_equal(engine.encode(column).dense, expected)


class Told:
    """Neither a sequence nor a column, with methods that have the right names."""

    def to_list(self) -> list[str]:
        return ["a"]

    def to_pylist(self) -> list[str]:
        return ["a"]

    def tolist(self) -> list[str]:
        return ["a"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (np.array([["a", "b"]]), "ndarray of <U1 [2-D]"),
        (np.array([[0, 5, 2]]), "ndarray of int64 [2-D]"),
        (np.array("a"), "ndarray of <U1 [0-D]"),
        (np.array([0, 5, 2]), "ndarray of int64"),
        (np.array([0.5]), "ndarray of float64"),
        (np.array([b"a"]), "ndarray of |S1"),
        (np.array(["2020-01-01"], "M8[D]"), "ndarray of datetime64[D]"),
        (np.float32(1), "float32 of float32 [0-D]"),
        (torch.zeros(2), "Tensor"),
        (np.zeros(2, "U1, i4"), "ndarray of [('f0', '<U1'), ('f1', '<i4')]"),
        (pd.Series([1, 2]), "Series of int64"),
        (pd.Series([True]), "Series of bool"),
        (pd.DataFrame({"tolist": ["a"], "dtype": ["b"]}), "DataFrame"),
        (pa.table({"a": ["b"]}), "Table"),
        (pa.record_batch({"a": ["b"]}), "RecordBatch"),
        ({"a": "b"}, "dict"),
        ({"a"}, "set"),
        (b"a", "bytes"),
        (bytearray(b"a"), "bytearray"),
        (None, "NoneType"),
        (7, "int"),
        (Told(), "Told"),
        (iter(["a"]), "list_iterator; for an iterator use encode_iter"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_column_of_texts_is_named(given: Any, found: str) -> None:
    with pytest.raises(InputError) as error:
        check_texts(given)
    assert str(error.value) == f"texts: expected a str or a list of str, found {found}"
    with pytest.raises(InputError, match=r"^sentences: expected a str or a list of str, found "):
        check_texts(given, "sentences")


@pytest.mark.parametrize(
    "column",
    [pa.array([1, 2]), pa.chunked_array([[1.5]]), pa.array([b"a"]), Polars([1]),
     pd.Series([1], dtype="category"), pd.Series([b"a"]), np.array([1, "a"], object)],
)  # fmt: skip
def test_an_element_that_is_no_text_is_named(column: Any, engine: m3fast.Engine) -> None:
    with pytest.raises(InputError, match=r"^texts\[0\]: expected a str .*, found [ifb]"):
        engine.encode(column)


def test_engines_take_columns(engine: m3fast.Engine) -> None:
    expected = engine.encode(TEXTS)

    async def served(column: Any) -> m3fast.Embeddings:
        async with m3fast.AsyncEngine(engine) as serving:
            return await serving.encode(column)

    columns: tuple[Any, ...] = (pd.Series(TEXTS), np.array(TEXTS), pa.chunked_array([TEXTS]))
    for column in columns:
        for found in (engine.encode(column), asyncio.run(served(column))):
            assert found.dense is not None and expected.dense is not None
            np.testing.assert_allclose(found.dense, expected.dense, atol=1e-5)
            np.testing.assert_array_equal(found.n_tokens, expected.n_tokens)


def test_no_package_is_imported_for_them() -> None:
    code = (
        "import sys, m3fast.inputs\n"
        "m3fast.inputs.check_texts(['a'])\n"
        "print([m for m in ('pandas', 'pyarrow', 'polars') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
