"""What an async engine refuses, drops or gives up."""

from __future__ import annotations

import asyncio

import pytest
from asyncruns import busy, held, run, until
from checkpoints import TEXTS, make_checkpoint
from faults import Spy
from nearness import same

from m3fast import Engine, InputError
from m3fast.errors import (
    DeadlineError,
    OverloadedError,
    TextSizeError,
)


def test_cancelled_work_is_not_run(engine) -> None:
    spy = Spy(engine.runner)

    async def use(serving):
        with held(spy):
            first = asyncio.create_task(serving.encode("x"))
            await busy(spy)
            gone = asyncio.create_task(serving.encode(["word " * 30] * 5))
            await until(lambda: serving.load.texts == 5)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert serving.load.texts == 0
        await first
        assert serving.load.tokens == 0

    run(engine, use)
    assert len(spy.batches) == 1


def test_a_deadline_ends_the_wait_and_the_work(engine) -> None:
    spy = Spy(engine.runner)

    async def use(serving):
        with held(spy):
            first = asyncio.create_task(serving.encode("x"))
            await busy(spy)
            with pytest.raises(DeadlineError, match=r"no answer within 0\.05 s"):
                await serving.encode("y", timeout=0.05)
        await first
        with pytest.raises(InputError, match="timeout: expected seconds above 0, found 0"):
            await serving.encode("y", timeout=0)
        assert serving.load.tokens == 0

    run(engine, use)
    assert len(spy.batches) == 1


def test_past_the_limit_it_is_overloaded_and_recovers(engine) -> None:
    spy = Spy(engine.runner)

    async def use(serving):
        with held(spy):
            first = asyncio.create_task(serving.encode(["a b c d"] * 80))
            await busy(spy)
            with pytest.raises(OverloadedError) as full:
                await serving.encode(["a b c d"] * 80)
            assert full.value.retry_after > 0
            assert serving.load.requests == 1
        assert len(await first) == 80
        assert len(await serving.encode(["a b c d"] * 80)) == 80
        with pytest.raises(InputError, match="expected at most 800 tokens in a request"):
            await serving.encode(["a b c d"] * 500)
        assert serving.load.tokens == 0

    run(engine, use, queue_tokens=800)


def test_bad_requests_are_refused_before_they_are_queued(engine) -> None:
    spy = Spy(engine.runner)

    async def use(serving):
        for texts, options, message in (
            (["a", None], {}, r"texts\[1\]: expected a str"),
            (["a"] * 5, {}, "texts: expected at most 4, found 5"),
            (["a\ud800"], {}, "lone surrogate"),
            (["a b c d e f g"], {"max_length": 4, "truncate": False}, r"texts\[0\]: .* 4 tokens"),
            (["a"], {"lane": "fast"}, "lane: expected"),
            (["a"], {"dense": False, "sparse": False, "colbert": False}, "at least one"),
            (["word " * 200], {"colbert": True}, "colbert: expected at most 20000 bytes"),
        ):
            with pytest.raises(InputError, match=message):
                await serving.encode(texts, **options)
        assert serving.load.tokens == 0
        empty = await serving.encode([])
        assert empty.dense.shape == (0, 40)

    run(engine, use, request_texts=4, output_bytes=20_000)
    assert not spy.batches


def test_texts_that_cost_too_much_are_refused_and_leave_nothing(engine) -> None:
    """The engine itself, without a queue of others, takes its time for them."""

    async def use(serving):
        for texts in (" " * 100_000, ["ok", "\n" * 100_000]):
            with pytest.raises(TextSizeError, match=r"^texts\[[01]\]: expected a place to cut it"):
                await serving.encode(texts, max_length=16)
        with pytest.raises(TextSizeError, match=r"^texts: expected at most 200000 characters"):
            await serving.encode(["the fox " * 50] * 600, max_length=512)
        assert serving.load.tokens == 0 and serving.load.requests == 0
        return await serving.encode(TEXTS)

    limits = {"text_characters": 10_000, "request_characters": 200_000, "request_texts": 600}
    same(run(engine, use, **limits), engine.encode(TEXTS), 5e-6)
    assert len(engine.encode(" " * 100_000, max_length=16)) == 1


def test_an_id_the_model_has_no_row_for_hurts_nobody_else(tmp_path) -> None:
    path = make_checkpoint(tmp_path / "model", vocab=7000)  # the tokenizer knows more
    engine = Engine.from_pretrained(path, device="cpu", dtype="float32")

    async def use(serving):
        return await asyncio.gather(
            serving.encode([[0, 7500, 2]]), serving.encode([[0, 50, 2]]), return_exceptions=True
        )

    bad, good = run(engine, use)
    assert isinstance(bad, InputError) and "below 7000, found 7500" in str(bad)
    assert len(good) == 1
