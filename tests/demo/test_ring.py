"""The ring: the same tokens as the reference, memory back step by step, and no hang when a thread dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import slabpool
from slabpool.demo import reference
from slabpool.demo.memory import Conversation, Parcel, PoolMemory
from slabpool.demo.model import F32, Decoder, KvPair, ModelConfig
from slabpool.demo.ring import Acknowledged, Finished, Ring, RingFailed
from slabpool.demo.workload import Job

JOB = Job(0, (256, *b"Which is heavier?"), 9)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(ModelConfig(), seed=3)


@pytest.fixture
def pool() -> Iterator[slabpool.Pool]:
    pool = slabpool.Pool("64MiB")
    yield pool
    pool.close(force=True)


def names(count: int) -> list[str]:
    return [f"device{number}" for number in range(count)]


def ring_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("slabpool-demo")]


@pytest.mark.parametrize("devices", [1, 2, 3, 6])
def test_ring_equals_reference_and_gives_everything_back(
    model: Decoder, pool: slabpool.Pool, devices: int
) -> None:
    with Ring(model, names(devices)) as ring:
        conversation = PoolMemory(pool, model, names(devices)).open(JOB, "chat-42")
        caches_alone = pool.stats().live
        assert caches_alone > 0
        ring.submit(conversation)
        assert ring.wait() == Finished(conversation, complete=True)
        # Every hidden state is back, although the request is still open and no device has acknowledged it.
        assert pool.stats().live == caches_alone
        assert [record.request_id for record in pool.requests()] == ["chat-42"]
        conversation.close()
        assert pool.stats().live == caches_alone
        ring.acknowledge(conversation)
        assert [ring.wait() for _ in range(devices)] == [Acknowledged(conversation)] * devices
    assert conversation.tokens == reference.generate(model, JOB.prompt, JOB.generate)
    stats = pool.stats()
    hidden_states = JOB.generate * (devices - 1)
    assert stats.acks == hidden_states + devices
    assert stats.duplicate_acks == stats.late_acks == 0
    assert stats.live == stats.retained == 0
    assert stats.allocations == stats.frees
    assert pool.leaks() == []
    assert not ring_threads()


def test_generations_of_one_id_at_once(model: Decoder, pool: slabpool.Pool) -> None:
    jobs = [Job(index, (256, *b"Name a cat"[: 3 + index]), 4 + index) for index in range(6)]
    with Ring(model, names(3)) as ring:
        memory = PoolMemory(pool, model, names(3))
        conversations = [memory.open(job, "chat-42") for job in jobs]
        for conversation in conversations:
            ring.submit(conversation)
        finished = {event.conversation.job.index for event in (ring.wait() for _ in jobs)}
        for conversation in conversations:
            conversation.close()
            ring.acknowledge(conversation)
    assert finished == set(range(6))
    for conversation in conversations:
        assert conversation.tokens == reference.generate(
            model, conversation.job.prompt, conversation.job.generate
        )
    assert pool.stats().live == 0


class Sabotage:
    """A conversation that fails in one method on one device."""

    def __init__(self, inner: Conversation, method: str, device: str, error: BaseException) -> None:
        self.job, self.tokens = inner.job, inner.tokens
        self._inner, self._method, self._device, self._error = inner, method, device, error

    def _check(self, method: str, device: str) -> None:
        if (method, device) == (self._method, self._device):
            raise self._error

    def caches(self, device: str, layers: range, start: int, count: int) -> tuple[int, list[KvPair]]:
        self._check("caches", device)
        return self._inner.caches(device, layers, start, count)

    def send(self, device: str, hidden: F32) -> Parcel:
        self._check("send", device)
        return self._inner.send(device, hidden)

    def close(self) -> None:
        self._inner.close()

    def ack(self, device: str) -> None:
        self._check("ack", device)
        self._inner.ack(device)


def serve_sabotaged(
    model: Decoder, pool: slabpool.Pool, *, waits: int, sabotage: tuple[str, str, BaseException]
) -> None:
    """Serve one conversation that fails, and wait for some of its three acks."""
    with Ring(model, names(3)) as ring:
        conversation = Sabotage(PoolMemory(pool, model, names(3)).open(JOB, "r"), *sabotage)
        ring.submit(conversation)
        ring.wait()  # raises, unless it is the ack that fails
        conversation.close()
        ring.acknowledge(conversation)
        for _ in range(waits):
            ring.wait()


@pytest.mark.parametrize(
    ("method", "device", "blamed"),
    [
        ("caches", "device0", "device0"),
        ("caches", "device2", "device2"),
        ("send", "device1", "device0"),
        ("ack", "device1", "device1"),
    ],
)
@pytest.mark.parametrize("error", [ValueError("broken on purpose"), SystemExit("broken on purpose")])
def test_a_thread_that_dies_ends_every_wait(
    model: Decoder, pool: slabpool.Pool, method: str, device: str, blamed: str, error: BaseException
) -> None:
    message = f"{blamed} failed: {type(error).__name__}: broken on purpose"
    with pytest.raises(RingFailed, match=message) as caught:
        serve_sabotaged(model, pool, waits=3, sabotage=(method, device, error))
    assert caught.value.__cause__ is error
    assert not ring_threads()


def test_a_failure_without_a_waiter_is_not_lost(model: Decoder, pool: slabpool.Pool) -> None:
    with pytest.raises(RingFailed, match="device1 failed: KeyError"):
        serve_sabotaged(model, pool, waits=0, sabotage=("ack", "device1", KeyError("broken on purpose")))


def test_an_error_of_the_host_ends_the_ring_and_comes_through(model: Decoder, pool: slabpool.Pool) -> None:
    def interrupted() -> None:
        with Ring(model, names(3)) as ring:
            ring.submit(PoolMemory(pool, model, names(3)).open(JOB, "r"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not ring_threads()


def test_a_request_that_does_not_fit_leaves_nothing_behind(model: Decoder) -> None:
    pool = slabpool.Pool("64KiB")
    with pytest.raises(slabpool.PoolExhausted):
        PoolMemory(pool, model, names(3)).open(Job(0, (256,) * 4000, 2), "large")
    assert pool.leaks() == []
    assert pool.stats().live == 0
    pool.close()
