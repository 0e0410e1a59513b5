"""The load generator: it loses nothing, says what was lost, and waits for nobody where it should not."""

from __future__ import annotations

import asyncio

import pytest

from bench.serving.loads import Outcome, arriving, bursts, closed, poisson
from bench.serving.stub import answer, serving
from bench.serving.summaries import Round, figures, quantile
from bench.serving.wire import Line, Lost, Reply, fetch, request

PAYLOADS = [request("/predict", f"{number}".encode()) for number in range(20)]


async def echo(body: bytes) -> bytes:
    return answer(body)


def test_each_request_is_sent_once_and_its_answer_is_its_own():
    async def run() -> list[Outcome]:
        async with serving(echo) as address:
            return await closed(address, PAYLOADS, 7, first=3)

    outcomes = asyncio.run(run())
    assert sorted(one.number for one in outcomes) == list(range(20))
    assert all(one.reply == Reply(200, {"content-length": str(len(body))}, body)
               for one in outcomes for body in [str(one.number).encode()])  # fmt: skip


def test_as_many_requests_as_are_told_by_turns():
    async def run() -> list[Outcome]:
        async with serving(echo) as address:
            seen: list[Outcome] = []
            kept = await closed(address, PAYLOADS, 2, 45, see=seen.append)
            none = await closed(address, PAYLOADS, 2, 45, seconds=0.0)
            return [*seen, *kept, *none]

    numbers = [one.number for one in asyncio.run(run())]
    assert len(numbers) == 45
    assert [numbers.count(number) for number in (0, 4, 5, 19)] == [3, 3, 2, 2]


def test_what_is_not_answered_is_lost_and_the_next_is_sent_over_another_connection():
    async def hang_up_on_some(body: bytes) -> bytes:
        return b"" if int(body) % 5 == 0 else answer(body, close=int(body) % 5 == 1)

    async def run() -> list[Outcome]:
        async with serving(hang_up_on_some) as address:
            return await closed(address, PAYLOADS, 3)

    outcomes = asyncio.run(run())
    assert sorted(one.number for one in outcomes if one.reply is None) == [0, 5, 10, 15]
    assert len(outcomes) == 20


def test_arrivals_wait_for_nobody_and_waiting_counts_from_when_they_were_due():
    """The first is answered only when all others have come: clients that wait for their answers would wait for ever."""

    async def run() -> list[Outcome]:
        all_there, came = asyncio.Event(), 0

        async def handle(body: bytes) -> bytes:
            nonlocal came
            came += 1
            if came == 20:
                all_there.set()
            await all_there.wait()
            return answer(body)

        async with serving(handle) as address:
            return await asyncio.wait_for(arriving(address, PAYLOADS, [0.001 * number for number in range(20)]), 60)

    outcomes = asyncio.run(run())
    assert [one.number for one in outcomes] == list(range(20))
    dues = [one.due - outcomes[0].due for one in outcomes]
    assert dues == pytest.approx([0.001 * number for number in range(20)])
    assert all(one.due <= one.sent <= one.done and one.seconds == one.done - one.due for one in outcomes)


def test_moments():
    moments = poisson(rate=100.0, seconds=50.0, seed=1)
    assert moments == sorted(moments) == poisson(100.0, 50.0, 1) != poisson(100.0, 50.0, 2)
    assert 4700 < len(moments) < 5300
    assert max(moments) < 50
    assert bursts(rate=8.0, seconds=2.0, size=4) == [0.0] * 4 + [0.5] * 4 + [1.0] * 4 + [1.5] * 4


def test_lines_tell_what_the_server_did():
    async def run() -> None:
        async with serving(echo) as address:
            line = Line(address)
            assert (await line.ask(PAYLOADS[7])).body == b"7"
            whole = request("/predict", b"abc")
            await line.send(whole[:-2])
            await line.send(whole[-2:])
            assert (await line.reply()).body == b"abc"
            line.vanish()
            assert (await line.ask(PAYLOADS[8])).body == b"8"
            line.close()
            assert await fetch(address, "/health") == b""
        with pytest.raises(Lost):
            await Line(address).ask(PAYLOADS[0])

        async def refuse(body: bytes) -> bytes:
            return answer(body, 503)

        async with serving(refuse) as address:
            with pytest.raises(ValueError, match="GET /info: expected status 200, got 503"):
                await fetch(address, "/info")

    asyncio.run(run())


def test_figures():
    assert [quantile([5, 1, 3, 2, 4], share) for share in (0.2, 0.5, 0.8, 0.99, 1.0)] == [1, 3, 4, 5, 5]
    with pytest.raises(ValueError, match="must not be empty"):
        quantile([], 0.5)

    def outcome(seconds: float, status: int = 200) -> Outcome:
        return Outcome(0, 10.0, 10.001, 10.0 + seconds, Reply(status, {}, b""))

    rounds = [
        Round([outcome(0.1), outcome(0.2), outcome(9.0, 429)], seconds=2.0, busy=0.1),
        Round([outcome(0.3)] * 8, seconds=2.0, busy=0.3),
        Round([outcome(0.5)] * 4, seconds=2.0, busy=0.2),
    ]
    found = figures(rounds)
    assert found["answers_per_second"] == (2.0, 1.0, 4.0)
    assert found["p50_ms"] == pytest.approx((300.0, 100.0, 500.0))
    assert found["p99_ms"] == pytest.approx((500.0, 200.0, 500.0))
    assert (found["requests"], found["refused"], found["generator_busy"]) == (15, 1, 0.3)
    assert found["sent_late_p99_ms"] == pytest.approx(1.0)
