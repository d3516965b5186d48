"""The keywords that every encoding method takes: one list, in each signature, checked by name."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TEXTS, make_checkpoint

from m3fast import AsyncEngine, Engine, InputError
from m3fast.engine.options import EncodeOptions

OPTIONS = list(EncodeOptions.__annotations__)
METHODS = [Engine.encode, Engine.encode_iter, Engine.warmup, Engine.call,
           AsyncEngine.encode, AsyncEngine.submit, AsyncEngine.encode_iter]  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    path: Path = make_checkpoint(tmp_path_factory.mktemp("model"), seed=5)
    return Engine.from_pretrained(path, device="cpu", dtype="float32")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__qualname__)
def test_every_signature_lists_them(method) -> None:
    parameters = inspect.signature(method).parameters
    assert list(parameters)[-len(OPTIONS) :] == OPTIONS
    for name in OPTIONS:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default is None
    assert all(name in EncodeOptions.__doc__ for name in OPTIONS)


def test_an_unknown_keyword_is_named_with_the_method(engine) -> None:
    def wrong(name: str) -> str:
        return rf"^{name}\(\) got an unexpected keyword argument 'max_len'$"

    for name in ("encode", "encode_iter"):
        with pytest.raises(TypeError, match=wrong(f"Engine.{name}")):
            getattr(engine, name)("x", max_len=3)
    for name in ("warmup", "call"):
        with pytest.raises(TypeError, match=wrong(f"Engine.{name}")):
            getattr(engine, name)(max_len=3)

    async def use() -> None:
        async with AsyncEngine(engine) as serving:
            for name in ("encode", "submit"):
                with pytest.raises(TypeError, match=wrong(f"AsyncEngine.{name}")):
                    await getattr(serving, name)("x", max_len=3)
            with pytest.raises(TypeError, match=wrong("AsyncEngine.encode_iter")):
                serving.encode_iter(["x"], max_len=3)

    asyncio.run(use())


def test_streams_take_all_of_them(engine) -> None:
    options: EncodeOptions = {
        "dense": True, "sparse": False, "colbert": None, "max_length": 9, "truncate_dim": 7,
        "normalize": False, "prompt_name": "",
    }  # fmt: skip
    assert list(options) == OPTIONS
    wanted = engine.encode(TEXTS, **options)

    async def use() -> list:
        async with AsyncEngine(engine) as serving:
            return [part async for part in serving.encode_iter(TEXTS, **options)]

    for (found,) in (engine.encode_iter(TEXTS, **options), asyncio.run(use())):
        np.testing.assert_allclose(found.dense, wanted.dense, rtol=0, atol=5e-6)
        np.testing.assert_allclose(found.colbert.values, wanted.colbert.values, rtol=0, atol=5e-6)
        assert found.sparse is None and found.n_tokens.max() == 9
    with pytest.raises(InputError, match="truncate_dim"):
        next(engine.encode_iter(TEXTS, truncate_dim=0))


def test_each_text_is_checked_once(engine, monkeypatch) -> None:
    from m3fast.text import tokenizer

    seen = []
    check = tokenizer.check_text
    monkeypatch.setattr(tokenizer, "check_text", lambda *args: seen.append(args) or check(*args))
    given = [*TEXTS[:3], [0, 5, 2], np.array([0, 6, 7, 2])]
    wanted = engine.encode(given)
    assert [text for _, text, _ in seen] == given

    async def use():
        async with AsyncEngine(engine) as serving:
            return await serving.encode(given)

    seen.clear()
    found = asyncio.run(use())
    assert [text for _, text, _ in seen] == given
    np.testing.assert_allclose(found.dense, wanted.dense, rtol=0, atol=5e-6)
    seen.clear()
    list(engine.encode_iter(given))
    assert [text for _, text, _ in seen] == given
