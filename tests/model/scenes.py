"""Small configurations of the ack protocol, each explored as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.model.explorer import BLOCKED, DONE, Automaton, Program, Result, explore, require
from tests.model.protocol import ANSWER_RELEASED, Protocol, Shape, Steps

SCENES: dict[str, tuple[Shape, Callable[[Protocol], Iterable[tuple[str, Program, int | None]]]]] = {}


def scene(shape: Shape):
    def add(build):
        SCENES[build.__name__.replace("_", " ")] = (shape, build)
        return build

    return add


def run(name: str, faults: Iterable[str] = ()) -> Result:
    shape, build = SCENES[name]
    protocol = Protocol(shape, frozenset(faults))
    programs = list(build(protocol))
    dead = [None if device is None else protocol.at(f"dead{device}") for _, _, device in programs]
    automata = [Automaton(n, p, group) for (n, p, _), group in zip(programs, dead, strict=True)]
    at_rest = [i for i, (n, _, _) in enumerate(programs) if n != "collector"]
    answers = [protocol.at(f"ghost_answered{g}") for g in protocol.released_once]
    returned = [protocol.at(f"ghost_returned{g}") for g in protocol.generations]

    def good(memory: tuple[int, ...], where: tuple[int, ...]) -> bool:
        """Every thread has ended, or died with its process; every request was returned, and one ack was
        answered so.
        """
        ended = all(where[i] == DONE for i in at_rest)
        return ended and all(memory[i] == 1 for i in returned) and all(memory[i] == 1 for i in answers)

    return explore(protocol.memory(), automata, good)


# ---- threads


def collector(p: Protocol) -> Program:
    """A thread of the owner that polls the boards."""

    def program() -> Steps:
        while True:
            yield from p.collect()

    return program


def acks(p: Protocol, device: int, *references: tuple[int, int]) -> Program:
    """A thread of a peer that acknowledges each (slot, generation) once the reference has reached it."""

    def program() -> Steps:
        for turn in range(len(references)):  # distinct values: see explorer.py
            slot, generation = references[turn]
            yield p.until(f"ghost_open{generation}", 2)
            yield from p.peer_ack(slot, generation, device)

    return program


def opens(
    p: Protocol, slot: int, generation: int, devices: tuple[int, ...], parent: int | None = None
) -> Steps:
    """Opens a request and sends its references."""
    made = yield from p.open(slot, generation, devices, parent)
    yield p.store(f"ghost_open{generation}", 2)
    return made


def waits_released(p: Protocol, slot: int, generation: int) -> Steps:
    """Polls until the request is over, as Pool::wait_released does in slices."""
    while True:
        yield from p.collect()
        ended = yield p.load(f"ended{slot}")
        if ended >= generation:
            return


# ---- scenes


@scene(Shape(devices=1, generations=1))
def two_threads_acknowledge_one_generation(p):
    def owner() -> Steps:
        yield from opens(p, 0, 1, (1,))
        yield from p.close(0, 1)

    return [
        ("owner", owner, None),
        ("collector", collector(p), None),
        ("A", acks(p, 1, (0, 1), (0, 1)), 1),
        ("B", acks(p, 1, (0, 1)), 1),
    ]


@scene(Shape(devices=1, generations=2))
def the_slot_is_used_again(p):
    """A sleeps between two steps of its ack, while the owner ends the request and opens another one in the
    slot.
    """

    def owner() -> Steps:
        yield from opens(p, 0, 1, (1,))
        yield from p.close(0, 1)
        yield from p.ack(0, 1, 1)  # by a message, so that the request can end without A
        yield from opens(p, 0, 2, (1,))
        yield from p.close(0, 2)
        yield from waits_released(p, 0, 2)

    return [
        ("owner", owner, None),
        ("A", acks(p, 1, (0, 1)), 1),
        ("B", acks(p, 1, (0, 2)), 1),
    ]


@scene(Shape(devices=1, generations=2))
def the_slot_is_used_again_while_a_thread_collects(p):
    """The collector has taken an ack off the board and sleeps, while the owner ends the request and opens
    another one.
    """

    def owner() -> Steps:
        yield from opens(p, 0, 1, (1,))
        yield from p.close(0, 1)
        yield from p.ack(0, 1, 1)
        yield from opens(p, 0, 2, (1,))
        yield from p.close(0, 2)
        yield from p.ack(0, 2, 1)

    return [
        ("owner", owner, None),
        ("collector", collector(p), None),
        ("A", acks(p, 1, (0, 1)), 1),
    ]


@scene(Shape(devices=2, generations=2))
def the_slot_is_used_again_by_two_devices(p):
    """A late thread of the first device meets the second device's ack of the next request in the tally."""
    p.released_once = (2,)

    def owner() -> Steps:
        yield from opens(p, 0, 1, (1,))
        yield from p.close(0, 1)
        yield from p.ack(0, 1, 1)
        yield from p.open(0, 2, (1, 2))
        yield from p.close(0, 2)
        yield p.store(
            "ghost_open2", 2
        )  # devices learn of it only now, so the last of them is the last holder
        yield from waits_released(p, 0, 2)

    return [
        ("owner", owner, None),
        ("A", acks(p, 1, (0, 1), (0, 2)), 1),
        ("B", acks(p, 2, (0, 2)), 2),
    ]


@scene(Shape(devices=2, generations=1, width=1))
def three_words_of_holders_in_one_process(p):
    """Host and devices leave at once, by calls of one process; the second device is named meanwhile."""

    def owner() -> Steps:
        yield from opens(p, 0, 1, (1,))
        yield from p.add_device(0, 1, 2)
        yield p.store("ghost_open1", 3)
        yield from p.close(0, 1)

    def device(number: int, when: int) -> Program:
        def program() -> Steps:
            at = p.at("ghost_open1")
            yield lambda m: None if m[at] >= when else BLOCKED
            yield from p.ack(0, 1, number)

        return program

    return [("owner", owner, None), ("A", device(1, 2), None), ("B", device(2, 3), None)]


@scene(Shape(devices=2, generations=1, width=1))
def three_words_of_holders_and_peers(p):
    """The owner names the second device and closes, while the first acknowledges."""

    def owner() -> Steps:
        yield from opens(p, 0, 1, (1,))
        yield from p.add_device(0, 1, 2)
        yield p.store("ghost_open1", 3)
        yield from p.close(0, 1)
        yield from waits_released(p, 0, 1)

    def second() -> Steps:
        yield p.until("ghost_open1", 3)
        yield from p.peer_ack(0, 1, 2)

    def first() -> Steps:
        at = p.at("ghost_open1")
        yield lambda m: None if m[at] >= 2 else BLOCKED
        yield from p.peer_ack(0, 1, 1)

    return [("owner", owner, None), ("A", first, 1), ("B", second, 2)]


@scene(Shape(devices=1, slots=2, generations=2))
def a_child_and_its_parent(p):
    """A device acknowledges the parent while the child is opened; the parent is closed once the child is
    over.
    """

    def owner() -> Steps:
        yield from opens(p, 0, 1, (1,))
        made = yield from opens(p, 1, 2, (1,), parent=0)
        if made:
            yield from p.close(1, 2)
            yield from waits_released(p, 1, 2)
        yield from p.close(0, 1)

    return [
        ("owner", owner, None),
        ("collector", collector(p), None),
        ("A", acks(p, 1, (0, 1)), 1),
    ]


@scene(Shape(devices=1, slots=2, generations=2))
def a_child_is_ended_by_its_parent(p):
    """The child's own ack races with that of the parent; the host closes the parent alone."""

    def owner() -> Steps:
        yield from p.open(0, 1, (1,))
        yield from opens(p, 1, 2, (1,), parent=0)
        yield p.store("ghost_open1", 2)
        yield from p.close(0, 1)
        yield from waits_released(p, 0, 1)

    return [
        ("owner", owner, None),
        ("A", acks(p, 1, (1, 2)), 1),
        ("B", acks(p, 1, (0, 1)), 1),
    ]


@scene(Shape(devices=2, generations=1))
def a_device_is_named_again(p):
    """The first device acknowledges, is named again, and acknowledges again; two threads each time."""

    def owner() -> Steps:
        yield from opens(p, 0, 1, (1, 2))
        yield p.until("message", 1)
        yield from p.add_device(0, 1, 1)
        yield p.store("message", 2)
        yield from p.close(0, 1)
        yield from waits_released(p, 0, 1)

    def first() -> Steps:
        yield p.until("ghost_open1", 2)
        yield from p.peer_ack(0, 1, 1)
        yield p.store("message", 1)
        yield p.until("message", 2)
        yield from p.peer_ack(0, 1, 1)

    return [
        ("owner", owner, None),
        ("A", first, 1),
        ("B", acks(p, 2, (0, 1)), 2),
    ]


def dies(p: Protocol, device: int) -> Program:
    """The process of a device ends at any moment after it got the reference; the owner's service thread
    notices, some time later.
    """

    def kill(m: list[int]) -> None:
        m[p.at(f"dead{device}")] = 1
        for g in p.generations:
            m[p.at(f"ghost_reading{g}")] &= ~(1 << device)
            m[p.at(f"ghost_on_the_way{g}")] &= ~(1 << device)

    def program() -> Steps:
        yield p.until("ghost_open1", 2)
        yield kill
        yield from p.detach_peer(device)

    return program


@scene(Shape(devices=1, generations=1))
def a_peer_dies_between_two_steps(p):
    def owner() -> Steps:
        yield from opens(p, 0, 1, (1,))
        yield from p.close(0, 1)

    return [
        ("owner", owner, None),
        ("collector", collector(p), None),
        ("A", acks(p, 1, (0, 1)), 1),
        ("service", dies(p, 1), None),
    ]


@scene(Shape(devices=2, generations=1))
def a_peer_dies_beside_another(p):
    """The other device acknowledges meanwhile."""

    def owner() -> Steps:
        yield from p.open(0, 1, (1, 2))
        yield from p.close(0, 1)
        yield p.store("ghost_open1", 2)
        yield from waits_released(p, 0, 1)

    return [
        ("owner", owner, None),
        ("A", acks(p, 1, (0, 1)), 1),
        ("B", acks(p, 2, (0, 1)), 2),
        ("service", dies(p, 1), None),
    ]


@scene(Shape(devices=2, slots=2, generations=2, width=2))
def a_forced_close_beside_a_peer(p):
    """The first device is a peer, the second one of the owner's process. The peer may have acknowledged, and
    ends.
    """

    def owner() -> Steps:
        yield from p.open(0, 1, (1, 2))
        yield from p.open(1, 2, (1, 2), parent=0)
        yield p.store("ghost_open1", 2)
        yield from p.close_by_force((1,))

    return [
        ("owner", owner, None),
        ("A", acks(p, 1, (0, 1)), 1),
        ("service", dies(p, 1), None),
    ]


@scene(Shape(devices=1, generations=1))
def released_is_true_for_the_next_call(p):
    """A device that was answered `released` reports so, and the owner's next call finds the request over,
    although another thread of the owner may have taken the ack already.
    """
    p.released_once = (1,)

    def owner() -> Steps:
        yield from p.open(0, 1, (1,))
        yield from p.close(0, 1)
        yield p.store("ghost_open1", 2)
        yield p.until("message", 1)
        yield from p.collect()
        yield lambda m: require(
            m[ended] == 1, "released was answered, and the next call finds the request held"
        )

    ended = p.at("ended0")

    def device() -> Steps:
        yield p.until("ghost_open1", 2)
        answer = yield from p.peer_ack(0, 1, 1)
        if answer == ANSWER_RELEASED:
            yield p.store("message", 1)

    return [("owner", owner, None), ("collector", collector(p), None), ("A", device, 1)]


@scene(Shape(devices=2, generations=1, width=1))
def released_is_true_unless_an_ack_is_on_its_way(p):
    """With several devices the owner may find the request held by another device that is about to publish
    its ack.
    """
    p.released_once = (1,)

    def owner() -> Steps:
        yield from p.open(0, 1, (1, 2))
        yield from p.close(0, 1)
        yield p.store("ghost_open1", 2)
        yield p.until("message", 1)
        before_the_call = yield p.load("ghost_on_the_way1")
        yield from p.collect()
        yield lambda m: require(
            m[ended] == 1 or before_the_call != 0,
            "released was answered, no ack is on its way, and the request is held",
        )
        yield from waits_released(p, 0, 1)

    ended = p.at("ended0")

    def device(number: int) -> Program:
        def program() -> Steps:
            yield p.until("ghost_open1", 2)
            answer = yield from p.peer_ack(0, 1, number)
            if answer == ANSWER_RELEASED:
                yield p.store("message", 1)

        return program

    return [("owner", owner, None), ("A", device(1), 1), ("B", device(2), 2)]


@scene(Shape(devices=2, generations=1))
def a_waiter_sleeps_until_the_bell(p):
    """No other thread of the owner polls."""

    def owner() -> Steps:
        yield from opens(p, 0, 1, (1, 2))
        yield from p.close(0, 1)
        yield p.store("waiting", 1)
        while True:
            if "collected before silenced" not in p.faults:
                yield from p.collect()
            ended = yield p.load("ended0")
            if ended == 1:
                break
            yield p.until("bell", 1)
            if "collected before silenced" in p.faults:
                yield from p.collect()
            yield p.store("bell", 0)
        yield p.store("waiting", 0)

    return [
        ("owner", owner, None),
        ("A", acks(p, 1, (0, 1)), 1),
        ("B", acks(p, 2, (0, 1)), 2),
    ]
