"""200 conversations in a pool that is too small for them, at random: the laws hold, and nothing is left.

The model knows what each conversation stored, and how much each may keep. The pool chooses what it evicts,
but the session must have been idle, and no session goes for a tensor that is refused.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

import slabpool
from slabpool import Pool, Request, Session

CHATS = 200
STEPS = 2000
CAPACITY = 4 << 20
BUDGET = 64 << 10


@dataclass
class Chat:
    """One conversation, as its user knows it."""

    id: str
    session: Session | None = None
    stored: dict[str, int] = field(default_factory=dict)  # name of what is kept: the value that fills it
    turn: Request | None = None
    device: str = ""


def check(pool: Pool, chats: list[Chat]) -> None:
    s = pool.stats()
    assert s.committed == s.live + s.retained + s.in_doubt + s.cached <= s.capacity
    records = {record.session_id: record for record in pool.sessions()}
    assert s.retained == 0
    for chat in chats:
        if chat.session is None or chat.session.closed:
            continue
        record = records.pop(chat.id)
        assert record.names == tuple(chat.session) and set(record.names) == set(chat.stored)
        assert record.nbytes <= BUDGET and (record.idle is None) == (chat.turn is not None)
    assert not records
    kept = [r for r in pool.requests() if r.state is slabpool.RequestState.KEPT]
    assert sum(r.nbytes for r in kept) == sum(record.nbytes for record in pool.sessions())
    assert s.live >= sum(r.nbytes for r in kept)


@pytest.mark.parametrize("seed", [1, 2])
def test_many_conversations_in_too_little_memory(seed: int) -> None:
    choice = random.Random(seed)
    pool = Pool(CAPACITY)
    chats = [Chat(f"chat-{n}") for n in range(CHATS)]
    evicted = refused = again = 0
    for step in range(STEPS):
        chat = choice.choice(chats)
        if chat.turn is not None:  # its device acknowledges
            assert chat.session is not None and not chat.session.closed, "evicted while in use"
            for name, value in chat.stored.items():
                assert (chat.session[name] == value).all(), "bytes of another conversation"
            chat.turn.close()
            assert chat.turn.ack(chat.device) is slabpool.Ack.RELEASED
            chat.turn = None
            continue
        if chat.session is not None and chat.session.closed:
            assert chat.session.evicted
            chat.session, chat.stored = None, {}
        if chat.session is None:
            chat.session = pool.session(chat.id, budget=BUDGET)
        chat.device = f"gpu{choice.randrange(3)}"
        chat.turn = chat.session.request(devices=[chat.device])
        again += bool(chat.stored)
        before = [c for c in chats if c.session is not None and not c.session.closed]
        for _ in range(choice.randrange(4)):
            name, value = choice.choice("abc"), choice.randrange(256)
            closed = sum(c.session.closed for c in before)  # type: ignore[union-attr]
            try:
                tensor = chat.turn.full(choice.choice([100, 5000, 20_000, 40_000]), value, "u1")
            except slabpool.PoolExhausted:
                refused += 1
                assert sum(c.session.closed for c in before) == closed, "evicted for nothing"  # type: ignore[union-attr]
                break
            try:
                chat.session.keep(name, tensor)
                chat.stored[name] = value
            except slabpool.QuotaExceededError:
                refused += 1
            del tensor
        gone = [c for c in before if c.session.closed]  # type: ignore[union-attr]
        evicted += len(gone)
        if gone:
            assert all(c.turn is None for c in gone), "evicted while in use"
        if step % 50 == 0:
            check(pool, chats)
            assert pool._verify() is None
        if choice.random() < 0.002:
            pool.device_lost(lost := f"gpu{choice.randrange(3)}")
            for other in chats:
                if other.turn is not None and other.device == lost:
                    other.turn.close()
                    other.turn = None
    assert evicted > 50 and refused > 10 and again > 200, (evicted, refused, again)
    for chat in chats:
        if chat.turn is not None:
            chat.turn.close()
            chat.turn.ack(chat.device)
    assert pool.stats().live == sum(record.nbytes for record in pool.sessions()) > 0
    for chat in chats:
        if chat.session is not None:
            chat.session.close()
    s = pool.stats()
    assert (s.live, s.retained, s.requests_open, s.requests_draining) == (0, 0, 0, 0)
    assert s.allocations == s.frees
    pool.close()
    assert pool.stats().committed == 0
    assert np.all([chat.session is None or chat.session.closed for chat in chats])
