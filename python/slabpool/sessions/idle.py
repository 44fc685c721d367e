"""Which sessions are idle, the least valuable first; and which of them suffice."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from slabpool.sessions.state import Queue, State


class Idle:
    """Idle sessions: those of the lowest priority first, of these the longest idle.

    Sessions in use are entered, too, until a walk comes across them: a turn does not take its session out.
    The core reports each session that becomes idle (`slabpool._core.session.gone_idle`), and it is entered
    again. So a walk costs as much as there are idle sessions and sessions that were used since the last walk.
    """

    def __init__(self) -> None:
        self._queue: Queue[tuple[int, int]] = Queue()

    def __bool__(self) -> bool:
        return self._queue.first() is not None

    def push(self, state: State) -> None:
        """Enters a session that may be idle, or moves it."""
        since = state.idle_since()
        if since is not None:
            self._queue.push((state.priority, since), state)

    def discard(self, state: State) -> None:
        """Removes a session, if it is in the queue."""
        self._queue.discard(state)

    def walk(self) -> Generator[State, None, None]:
        """Idle sessions in order. To be closed before anything is pushed or discarded.

        An entry's instant is never later than that since which the session is idle, so the first entry whose
        instant is right is the first of all.
        """
        seen: list[tuple[tuple[int, int], State]] = []
        try:
            while self._queue.first() is not None:
                key, state = self._queue.pop()
                since = state.idle_since()
                if since is None:
                    continue
                now = state.priority, since
                if now > key:
                    self._queue.push(now, state)
                else:
                    seen.append((key, state))
                    yield state
        finally:
            for key, state in seen:
                self._queue.push(key, state)


def fewest(brings: Iterable[tuple[State, int]], need: int) -> list[State]:
    """The first of these sessions that together bring enough, without those that are not needed for it.

    Parameters
    ----------
    brings : iterable of (State, int)
        Sessions and what the end of each brings, the least valuable first. Read as far as needed.
    need : int

    Returns
    -------
    list of State
        Empty: all together bring less. Otherwise no one of them can be left out.
    """
    chosen: list[tuple[State, int]] = []
    for state, size in brings:
        if size > 0:
            chosen.append((state, size))
            need -= size
            if need <= 0:
                break
    if need > 0:
        return []
    needed: list[State] = []
    for state, size in reversed(chosen):  # the most valuable is spared first
        if need + size <= 0:
            need += size
        else:
            needed.append(state)
    return needed
