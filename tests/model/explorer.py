"""A small explicit-state model checker.

A program is a generator. Each `yield` is one atomic access to the shared memory: a function that takes the
memory as a list, may change it, and returns what the program gets back, or `BLOCKED` if the access cannot
happen now. Between two accesses a program only computes, so any interleaving of real threads corresponds to
an interleaving of accesses.

A generator can neither be copied nor hashed. So each program is turned into an automaton while it is
explored: the local state is where its frames stand and what their variables hold. Programs therefore keep
only hashable values in variables, leave nothing on the stack across a `yield` (`v = yield ...`), and loop
over distinct values.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

BLOCKED = object()
DONE = -1

Access = Callable[[list[int]], Any]
Program = Callable[[], Generator[Access, Any, Any]]


def quiet(access: Access) -> Access:
    """An access that commutes with every access of other threads, so it belongs to the step before it."""
    access.quiet = True  # type: ignore[attr-defined]
    return access


class Violation(Exception):
    """A property does not hold; `steps` is a shortest way there."""

    steps: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join((self.args[0], *self.steps))


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Violation(what)


class Automaton:
    """One program, unfolded as far as it was explored."""

    def __init__(self, name: str, program: Program, group: int | None = None):
        self.name = name
        self.program = program
        self.group = group  # index of the memory cell that says that its process has died
        self.accesses: list[Access] = []
        self.quiet: list[bool] = []
        self.histories: list[tuple[Any, ...]] = []
        self.places: list[str] = []
        self.by_key: dict[Any, int] = {}
        self.edges: dict[tuple[int, Any], int] = {}
        self.start = self._enter(())

    def follow(self, local: int, value: Any) -> int:
        edge = (local, value)
        after = self.edges.get(edge)
        if after is None:
            after = self.edges[edge] = self._enter((*self.histories[local], value))
        return after

    def _enter(self, history: tuple[Any, ...]) -> int:
        run = self.program()
        try:
            access = next(run)
            for value in history:
                access = run.send(value)
        except StopIteration:
            return DONE
        key, place = _where(run)
        local = self.by_key.setdefault(key, len(self.accesses))
        if local == len(self.accesses):
            self.accesses.append(access)
            self.quiet.append(getattr(access, "quiet", False))
            self.histories.append(history)
            self.places.append(place)
        return local


def _where(run: Any) -> tuple[Any, str]:
    key = []
    place = ""
    while run is not None:
        frame = run.gi_frame
        key.append((frame.f_code, frame.f_lasti, tuple(sorted(frame.f_locals.items()))))
        place = f"{frame.f_code.co_name}:{frame.f_lineno}"
        run = run.gi_yieldfrom
    return tuple(key), place


@dataclass
class Result:
    states: int
    steps: int


def explore(
    memory: list[int], automata: list[Automaton], good: Callable[[tuple[int, ...], tuple[int, ...]], bool]
) -> Result:
    """Visits every reachable state. Raises `Violation` if an access does, or if some state cannot reach a
    good one.

    `good(memory, locals)` says whether all is done and well. That each state can still reach a good one
    excludes deadlocks, lost work and livelocks, under the one assumption that no thread is stopped for
    ever.
    """
    size = len(memory)
    first = (*memory, *(a.start for a in automata))
    index = {first: 0}
    states = [first]
    parents = array("i", [-1])
    movers = array("b", [-1])
    sources, targets = array("i"), array("i")
    places = [(size + i, a, a.accesses, a.edges) for i, a in enumerate(automata)]
    mortal = [(size + i, a.group) for i, a in enumerate(automata) if a.group is not None]
    at = 0
    try:
        while at < len(states):
            state = states[at]
            for place, automaton, accesses, edges in places:
                local = state[place]
                if local == DONE:
                    continue
                after = list(state)
                value = accesses[local](after)
                if value is BLOCKED:
                    continue
                following = edges.get((local, value))
                if following is None:
                    following = automaton.follow(local, value)
                while following != DONE and automaton.quiet[following]:
                    value = accesses[following](after)
                    following = automaton.follow(following, value)
                after[place] = following
                for thread, dead in mortal:
                    if after[dead]:
                        after[thread] = DONE  # wherever it was
                key = tuple(after)
                found = index.get(key)
                if found is None:
                    found = index[key] = len(states)
                    states.append(key)
                    parents.append(at)
                    movers.append(place - size)
                sources.append(at)
                targets.append(found)
            at += 1
    except Violation as violation:
        violation.steps = (*_way(states, parents, movers, automata, size, at), f"then {automaton.name}")
        raise
    stuck = _cannot_reach(states, sources, targets, lambda s: good(s[:size], s[size:]))
    if stuck is not None:
        violation = Violation("no way to a good end")
        violation.steps = (*_way(states, parents, movers, automata, size, stuck), f"memory {states[stuck]}")
        raise violation
    return Result(len(states), len(sources))


def _way(
    states: list[tuple[int, ...]],
    parents: array[int],
    movers: array[int],
    automata: list[Automaton],
    size: int,
    at: int,
) -> list[str]:
    way = []
    while parents[at] >= 0:
        mover = movers[at]
        automaton = automata[mover]
        at = parents[at]
        way.append(f"{automaton.name} {automaton.places[states[at][size + mover]]}")
    return way[::-1]


def _cannot_reach(
    states: list[tuple[int, ...]],
    sources: array[int],
    targets: array[int],
    good: Callable[[tuple[int, ...]], bool],
) -> int | None:
    """The earliest state from which no good one can be reached."""
    before: list[list[int]] = [[] for _ in states]
    for source, target in zip(sources, targets, strict=True):
        before[target].append(source)
    reaches = bytearray(len(states))
    todo = [i for i, state in enumerate(states) if good(state)]
    for i in todo:
        reaches[i] = 1
    while todo:
        for source in before[todo.pop()]:
            if not reaches[source]:
                reaches[source] = 1
                todo.append(source)
    stuck = reaches.find(0)
    return None if stuck < 0 else stuck
