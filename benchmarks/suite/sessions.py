"""sessions: the cost of a turn that uses the KV of the turn before, with and without sessions.

A turn opens a request with one device, finds the conversation's KV, reads its first and last bytes, keeps it
for the next turn, and the device acknowledges. Compared are three ways to keep the KV: in a session, as a
copy into a new request from an array that the engine holds (numpy), and as a copy from request to request.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness.figures import ratio
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group
from benchmarks.harness.worker import Statement

SIZES = (4 << 10, 1 << 20, 16 << 20)
TURN = [Group("one turn, its KV left to the next", nbytes) for nbytes in SIZES]
PARTS = Group("parts of a turn, 1 MiB kept")


def _pool() -> Any:
    import slabpool

    return slabpool.Pool("256MiB")


def _session(nbytes: int) -> Any:
    """A session that keeps its first tensor. The session keeps the pool alive."""
    session = _pool().session("chat-42")
    with session.request() as turn:
        session.keep("kv", turn.zeros(nbytes, "u1"))
    return session


def keep(nbytes: int) -> Statement:
    """The session has the tensor. Each turn opens it and keeps the same tensor again."""
    session = _session(nbytes)

    def one() -> None:
        turn = session.request(("gpu0",))
        kv = session.writable("kv")
        kv[0] = kv[-1]
        session.keep("kv", kv)
        turn.close()
        turn.ack("gpu0")

    return Statement("one()", {"one": one})


def keep_new(nbytes: int) -> Statement:
    """Each turn makes a new tensor, which replaces the one before."""
    session = _session(nbytes)

    def one() -> None:
        turn = session.request(("gpu0",))
        kv = session["kv"]
        new = turn.empty(nbytes, "u1")
        new[0] = kv[-1]
        session.keep("kv", new)
        turn.close()
        turn.ack("gpu0")

    return Statement("one()", {"one": one})


def copy_request(nbytes: int) -> Statement:
    """Without sessions: the next request is opened before the last one ends, and the KV is copied."""
    pool = _pool()
    state = [pool.request("chat-42", ("gpu0",))]
    kept = [state[0].zeros(nbytes, "u1")]

    def one() -> None:
        turn = pool.request("chat-42", ("gpu0",))
        kv = turn.copy(kept[0])
        kv[0] = kv[-1]
        last, state[0], kept[0] = state[0], turn, kv
        last.close()
        last.ack("gpu0")

    return Statement("one()", {"one": one})


def copy_numpy(nbytes: int) -> Statement:
    """Without sessions or a pool: the old array is copied into a new one."""
    import numpy as np

    kept = [np.zeros(nbytes, np.uint8)]

    def one() -> None:
        kv = np.empty(nbytes, np.uint8)
        np.copyto(kv, kept[0])
        kv[0] = kv[-1]
        kept[0] = kv

    return Statement("one()", {"one": one})


def part(what: str) -> Statement:
    pool = _pool()
    session = pool.session("chat-42")
    turn = session.request()
    session.keep("kv", turn.zeros(1 << 20, "u1"))
    names: dict[str, Any] = {"session": session, "pool": pool, "turn": turn}
    return Statement(what, names)


_PARTS = {
    "session.request(), close": "session.request().close()",
    "pool.request(), close": "pool.request('other').close()",
    "session[name]": "session['kv']",
    "session.writable(name)": "session.writable('kv')",
    "session.request(), empty, close": "with session.request() as other: other.empty(1000, 'u1')",
}


def _cases(effort: Effort) -> list[Case]:
    here = "benchmarks.suite.sessions"
    cases = []
    for group in TURN:
        for contender, target in [
            (OURS, "keep"),
            ("slabpool, a new tensor kept", "keep_new"),
            ("slabpool, copied to the next request", "copy_request"),
            ("numpy, copied", "copy_numpy"),
        ]:
            cases.append(Case(group, contender, "timed", f"{here}:{target}", {"nbytes": group.nbytes}))
    for contender, what in _PARTS.items():
        cases.append(Case(PARTS, contender, "timed", f"{here}:part", {"what": what}))
    return cases


def _bars(effort: Effort) -> list[Bar]:
    return [
        Bar(f"a turn over numpy's copy, {group.size}", ratio(group, "numpy, copied"), "at most", limit)
        for group, limit in zip(TURN[1:], (1.0, 0.1), strict=True)
    ]


BENCHMARK = Benchmark(
    "sessions",
    "What a turn leaves to the next",
    _cases,
    _bars,
    (
        "The copies are a lower bound for an engine without sessions: it knows where the last KV is, "
        "and nothing else has used the processor's caches. `keep` does not touch the memory at all.",
    ),
)
