"""The ack protocol, one atomic access of the C++ code per step.

Each function mirrors the C++ function of the same name; a comment says where they differ. The memory is
sequentially consistent: why weaker orders suffice is argued in docs/design/locks.md. What is left out:
blocks (the claim stands for their return), ids, leases, sessions, streams, and full boards.

Ghosts are cells that only the checker knows: what the devices really do, against which the code is judged.
They change in the same step as the access that they belong to.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from tests.model.explorer import BLOCKED, Access, quiet, require

Steps = Generator[Access, Any, Any]

HOST = 0  # the bit of the host; the bit of a device is its number, from 1
RELEASED = 1 << 8  # the mark in a record's generation
PENDING, ANSWER_RELEASED, DUPLICATE, LATE, UNKNOWN = (
    "pending",
    "released",
    "duplicate",
    "late",
    "unknown device",
)

# Each is a fault that the checker must find (test_ack_model.py), at the place where `fault in self.faults`
# stands.
FAULTS = {
    "post is a blind exchange": "AckBoard::post overwrites whatever generation it finds",
    "leave does not compare the generation": "HolderSet::try_leave clears a bit of any generation",
    "last is decided by an earlier load": "HolderSet::try_leave looks at the others first",
    "claim is a load and a store": "RequestTable::claim changes the generation without a compare-and-swap",
    "marked before posted": "SharedPeer::ack publishes before it posts",
    "dirty before marked": "AckBoard::publish sets the dirty bit first",
    "generation read before the mark is off": "AckBoard::collect takes the mark off last",
    "no look at the parent after linking": "RequestTable::open does not read the parent's bits again",
    "children before the bit": "Pool::count_ack reads first_child, then clears the bit",
    "the bell before the board": "SharedPeer::ack reads `waiting` before it publishes",
    "collected before silenced": "a waiter collects, then takes the bell's edge off",
    "no look at who is collecting": "PolledAcks::collect returns when it finds no news",
    "a board is not forgotten": "Pool::add_device leaves the old ack on the board",
    "the tally is not rejoined": "Pool::add_device leaves the device marked as gone in the tally",
    "the tally reads its words before it leaves": "AckTally::leave looks at the others, then marks itself",
    "words are counted before the first is read": "HolderView::each_word reads `words` before word 0",
    "a late thread clears the tally": "AckTally::leave overwrites the word of a later generation",
    "a lost device does not leave": "Pool::detach_peer takes the board away and does not call device_lost",
    "a forced close ends a peer's hold": "RequestTable::close_all lets every device leave",
}


@dataclass(frozen=True)
class Shape:
    """How much of everything there is. Bit b of a set stands in word b // width."""

    devices: int = 1  # numbered from 1
    slots: int = 1
    generations: int = 1  # numbered from 1; the memory has 64 bits for each, the model as many as it needs
    width: int = 8  # holders per word


class Protocol:
    def __init__(self, shape: Shape, faults: frozenset[str] = frozenset()):
        assert faults <= FAULTS.keys()
        self.shape = shape
        self.faults = faults
        # Generations of which exactly one ack must be answered `released`.
        self.released_once: tuple[int, ...] = ()
        self.names: dict[str, int] = {}
        self.words = shape.devices // shape.width + 1
        self.devices = range(1, shape.devices + 1)
        self.slots = range(shape.slots)
        for s in self.slots:
            for name in ("slot_generation", "record", "ended", "words", "host_left", "first_child", "parent"):
                self._add(f"{name}{s}")
            for w in range(self.words):
                for name in ("pending", "named", "left"):
                    self._add(f"{name}{s}.{w}")
            self._add(f"answered{s}")
        for d in self.devices:
            self._add(f"dirty{d}")
            self._add(f"dead{d}")
            for s in self.slots:
                self._add(f"mark{d}.{s}")
                self._add(f"acked{d}.{s}")
        for name in ("table_mutex", "collect_mutex", "collecting", "waiting", "bell", "message"):
            self._add(name)
        for g in range(1, shape.generations + 1):
            # Ghosts: which devices may read; whether the host holds; how often its memory went back; how
            # often a device was answered `released`; whose acks are on the way; how often each hold was
            # answered as its first.
            for name in (
                "reading",
                "host",
                "returned",
                "answered",
                "on_the_way",
                "parent_of",
                "gone",
                "open",
            ):
                self._add(f"ghost_{name}{g}")
        self.generations = range(1, shape.generations + 1)

    def _add(self, name: str) -> None:
        self.names[name] = len(self.names)

    def memory(self) -> list[int]:
        return [0] * len(self.names)

    def at(self, name: str) -> int:
        return self.names[name]

    # ---- accesses

    def load(self, name: str) -> Access:
        i = self.at(name)
        return lambda m: m[i]

    def store(self, name: str, value: int) -> Access:
        i = self.at(name)

        def access(m: list[int]) -> None:
            m[i] = value

        return access

    def exchange(self, name: str, value: int) -> Access:
        i = self.at(name)

        def access(m: list[int]) -> int:
            before, m[i] = m[i], value
            return before

        return access

    def cas(self, name: str, expected: int, value: int) -> Access:
        """What was there; it is now `value` if that was `expected`."""
        i = self.at(name)

        def access(m: list[int]) -> int:
            before = m[i]
            if before == expected:
                m[i] = value
            return before

        return access

    def lock(self, name: str) -> Access:
        i = self.at(name)

        def access(m: list[int]) -> Any:
            if m[i]:
                return BLOCKED
            m[i] = 1
            return None

        return access

    def unlock(self, name: str) -> Access:
        return quiet(self.store(name, 0))  # others can only wait for it

    # Cells that change only under the table's mutex, which the caller holds.

    def load_guarded(self, name: str) -> Access:
        return quiet(self.load(name))

    def until(self, name: str, value: int) -> Access:
        i = self.at(name)
        return lambda m: None if m[i] == value else BLOCKED

    # ---- ghosts

    def family(self, m: list[int], generation: int) -> list[int]:
        """The generation and what descends from it."""
        found = [generation]
        for g in self.generations:
            if m[self.at(f"ghost_parent_of{g}")] in found:
                found.append(g)
        return found

    def begins_ack(self, m: list[int], generation: int, device: int) -> None:
        """From here on the device does not touch the memory of the request or of its children."""
        for g in self.family(m, generation):
            m[self.at(f"ghost_reading{g}")] &= ~(1 << device)
            m[self.at(f"ghost_gone{g}")] |= 1 << device
        m[self.at(f"ghost_on_the_way{generation}")] |= 1 << device

    def cleared(self, m: list[int], generation: int, bit: int) -> None:
        """The bit of a holder was cleared: that holder must really have left."""
        if bit == HOST:
            require(
                m[self.at(f"ghost_host{generation}")] == 0, f"the host holds {generation} and was cleared"
            )
        else:
            reading = m[self.at(f"ghost_reading{generation}")]
            require(not reading >> bit & 1, f"device {bit} reads {generation} and was cleared")

    def has_come_back(self, m: list[int], generation: int) -> None:
        returned = self.at(f"ghost_returned{generation}")
        m[returned] += 1
        require(m[returned] == 1, f"{generation} was returned twice")
        require(m[self.at(f"ghost_reading{generation}")] == 0, f"{generation} was returned under a reader")
        require(m[self.at(f"ghost_host{generation}")] == 0, f"{generation} was returned under the host")

    def answered(self, m: list[int], generation: int, device: int, answer: str) -> None:
        if answer == LATE:
            require(
                m[self.at(f"ghost_returned{generation}")] == 1, f"late for {generation}, which is not over"
            )
        elif answer == ANSWER_RELEASED:
            answers = self.at(f"ghost_answered{generation}")
            m[answers] += 1
            require(m[answers] == 1, f"two were answered released for {generation}")
            free = (
                m[self.at(f"ghost_reading{generation}")] == 0 and m[self.at(f"ghost_host{generation}")] == 0
            )
            require(free, f"released was answered for {generation}, which is held")
        else:
            require(answer != UNKNOWN, f"device {device} is unknown to {generation}")
        m[self.at(f"ghost_on_the_way{generation}")] &= ~(1 << device)

    # ---- HolderSet. A word is the generation and the bits of its holders

    def pack(self, generation: int, bits: int) -> int:
        return generation << 16 | bits

    def word_of(self, bit: int) -> int:
        return bit // self.shape.width

    def begins_to_hold(self, m: list[int], generation: int, bit: int) -> None:
        """The device may read from here on, unless it has left the parent, or an ack is on its way that began
        before: such an ack may be ordered after this call.
        """
        parent = m[self.at(f"ghost_parent_of{generation}")]
        gone = parent and m[self.at(f"ghost_gone{parent}")] >> bit & 1
        if (
            not gone
            and not m[self.at(f"ghost_on_the_way{generation}")] >> bit & 1
            and not m[self.at(f"dead{bit}")]
        ):
            m[self.at(f"ghost_reading{generation}")] |= 1 << bit

    def set_open(self, slot: int, generation: int, devices: tuple[int, ...]) -> Steps:
        """The host and those of the devices whose bits stand in the first word hold."""
        first = tuple(d for d in devices if self.word_of(d) == 0)
        all_bits = self.pack(generation, 1 | sum(1 << d for d in first))
        pending = self.at(f"pending{slot}.0")

        def hold(m: list[int]) -> None:
            m[pending] = all_bits
            for d in first:
                self.begins_to_hold(m, generation, d)

        yield self.store(f"named{slot}.0", all_bits)
        yield hold
        yield self.store(f"words{slot}", 1)

    def set_add(self, slot: int, generation: int, bit: int) -> Steps:
        words = yield self.load_guarded(f"words{slot}")
        word = self.word_of(bit)
        for w in range(words, word + 1):
            yield self.store(f"named{slot}.{w}", self.pack(generation, 0))
            yield self.store(f"pending{slot}.{w}", self.pack(generation, 0))
        if word >= words:
            yield self.store(f"words{slot}", word + 1)
        named, pending = self.at(f"named{slot}.{word}"), self.at(f"pending{slot}.{word}")

        def name(m: list[int]) -> None:
            m[named] |= 1 << bit

        def hold(m: list[int]) -> None:
            m[pending] |= 1 << bit
            self.begins_to_hold(m, generation, bit)

        yield name
        yield hold

    def clear_bits(self, name: str, expected: int, value: int) -> Access:
        """The compare-and-swap of leave() and cut()."""
        i = self.at(name)

        def access(m: list[int]) -> int:
            before = m[i]
            if before == expected:
                m[i] = value
                for bit in range(self.shape.devices + 1):
                    if (before & ~value) >> bit & 1:
                        self.cleared(m, before >> 16, bit)
            return before

        return access

    def leave(self, slot: int, generation: int, bit: int) -> Steps:
        """HolderSet::try_leave."""
        word, mask = self.word_of(bit), 1 << bit
        others = False
        if "last is decided by an earlier load" in self.faults:
            words = yield self.load(f"words{slot}")
            for w in range(words):
                seen = yield self.load(f"pending{slot}.{w}")
                others = others or (seen & 0xFFFF & ~mask) != 0
                del seen
        now = yield self.load(f"pending{slot}.{word}")
        while True:
            if now >> 16 != generation and "leave does not compare the generation" not in self.faults:
                return "absent"
            if not now & mask:
                return "absent"
            before = yield self.clear_bits(f"pending{slot}.{word}", now, now & ~mask)
            if before == now:
                break
            now = before
        if "last is decided by an earlier load" in self.faults:
            return "others" if others else "last"
        if now & 0xFFFF != mask:
            return "others"
        words = yield self.load(f"words{slot}")
        if words == 1:
            return "last"
        empty = yield from self.empty(slot, generation)
        return "last" if empty else "others"

    def cut(self, slot: int, generation: int) -> Steps:
        words = yield self.load(f"words{slot}")
        for w in range(words):
            now = yield self.load(f"pending{slot}.{w}")
            while now >> 16 == generation and now & 0xFFFF:
                before = yield self.clear_bits(f"pending{slot}.{w}", now, self.pack(generation, 0))
                if before == now:
                    break
                now = before

    def empty(self, slot: int, generation: int) -> Steps:
        w = 0
        while True:
            now = yield self.load(f"pending{slot}.{w}")
            if now >> 16 != generation or now & 0xFFFF:
                return False
            del now
            w += 1
            words = yield self.load(f"words{slot}")
            if w >= words:
                return True
            del words

    def has(self, what: str, slot: int, generation: int, bit: int) -> Steps:
        words = yield self.load(f"words{slot}")
        word = self.word_of(bit)
        if word >= words:
            return False
        now = yield self.load(f"{what}{slot}.{word}")
        return now >> 16 == generation and bool(now >> bit & 1)

    # ---- RequestTable

    def open(self, slot: int, generation: int, devices: tuple[int, ...], parent: int | None = None) -> Steps:
        """RequestTable::open in this slot, once it is free; `parent` is the slot of generation 1."""
        record = self.at(f"record{slot}")
        mutex = self.at("table_mutex")

        def take(m: list[int]) -> Any:
            if m[record] or m[mutex]:
                return BLOCKED
            m[mutex] = 1
            m[self.at(f"ghost_host{generation}")] = 1
            m[self.at(f"ghost_open{generation}")] = 1
            m[self.at(f"host_left{slot}")] = 0
            m[self.at(f"parent{slot}")] = 0
            if parent is not None:
                m[self.at(f"ghost_parent_of{generation}")] = 1
            return None

        yield take
        if parent is not None:
            for d in devices:
                holds = yield from self.has("pending", parent, 1, d)
                if not holds:  # the caller is answered unknown_device
                    closed = self.at(f"ghost_host{generation}")
                    returned = self.at(f"ghost_returned{generation}")

                    def refuse(m: list[int]) -> None:
                        m[closed], m[returned], m[mutex] = 0, 1, 0

                    yield refuse
                    return False
        yield from self.set_open(slot, generation, devices)
        for d in devices:
            if self.word_of(d) != 0:
                yield from self.set_add(slot, generation, d)
        yield self.store(f"record{slot}", generation)
        yield self.store(f"slot_generation{slot}", generation)
        if parent is not None:
            linked = self.at(f"parent{slot}")
            child = self.at(f"first_child{parent}")

            def link_child(m: list[int]) -> None:
                m[linked], m[child] = parent + 1, slot + 1

            yield link_child
            if "no look at the parent after linking" not in self.faults:
                for d in devices:
                    holds = yield from self.has("pending", parent, 1, d)
                    if not holds:
                        yield from self.leave(slot, generation, d)
        yield self.unlock("table_mutex")
        return True

    def claim_if_last(self, answer: str, slot: int, generation: int) -> Steps:
        """RequestTable::claim_into, under the table's mutex."""
        if answer != "last":
            return ()
        mine = yield from self.claim(slot, generation)
        return ((slot, generation),) if mine else ()

    def bit_leaves_one(self, slot: int, device: int) -> Steps:
        generation = yield self.load(f"record{slot}")
        if generation & RELEASED:
            return ()
        answer = yield from self.leave(slot, generation, device)
        return (yield from self.claim_if_last(answer, slot, generation))

    def host_leaves_one(self, slot: int) -> Steps:
        generation = yield self.load(f"record{slot}")
        left = yield self.load_guarded(f"host_left{slot}")
        if left or generation & RELEASED:
            return ()
        yield quiet(self.store(f"host_left{slot}", 1))
        answer = yield from self.leave(slot, generation, HOST)
        return (yield from self.claim_if_last(answer, slot, generation))

    def close(self, slot: int, generation: int) -> Steps:
        """Pool::close_request. The host's views are dropped before the call."""
        family = self.family

        def begin(m: list[int]) -> None:
            for g in family(m, generation):
                m[self.at(f"ghost_host{g}")] = 0

        yield begin
        yield from self.collect()
        yield self.lock("table_mutex")
        over: tuple[Any, ...] = ()
        record = yield self.load(f"record{slot}")
        left = yield self.load_guarded(f"host_left{slot}")
        if record == generation and not left:
            child = yield self.load_guarded(f"first_child{slot}")
            if child:
                more = yield from self.host_leaves_one(child - 1)
                over += more
            more = yield from self.host_leaves_one(slot)
            over += more
        yield self.unlock("table_mutex")
        yield from self.end_all(over)

    def cut_one(self, slot: int) -> Steps:
        generation = yield self.load(f"record{slot}")
        if generation == 0 or generation & RELEASED:
            return ()
        over = yield from self.host_leaves_one(slot)
        yield from self.cut(slot, generation)
        more = yield from self.claim_if_last("last", slot, generation)
        return over + more

    def add_device(self, slot: int, generation: int, device: int) -> Steps:
        """Pool::add_device of a shared pool."""
        yield from self.collect()
        record = yield self.load(f"record{slot}")
        if record == generation:
            holds = yield from self.has("pending", slot, generation, device)
            if not holds:
                if "a board is not forgotten" not in self.faults:
                    yield self.cas(f"acked{device}.{slot}", generation, 0)
                if "the tally is not rejoined" not in self.faults:
                    yield from self.rejoin(slot, generation, device)
        yield self.lock("table_mutex")
        record = yield self.load(f"record{slot}")
        left = yield self.load_guarded(f"host_left{slot}")
        holds = yield from self.has("pending", slot, generation, device)
        if record == generation and not left and not holds:
            yield from self.set_add(slot, generation, device)
        yield self.unlock("table_mutex")

    def claim(self, slot: int, generation: int) -> Steps:
        empty = yield from self.empty(slot, generation)
        if not empty:
            return False
        del empty
        record = self.at(f"record{slot}")
        if "claim is a load and a store" in self.faults:
            now = yield self.load(f"record{slot}")
            if now != generation:
                return False

            def change(m: list[int]) -> bool:
                m[record] = generation | RELEASED
                self.has_come_back(m, generation)
                return True

        else:

            def change(m: list[int]) -> bool:
                if m[record] != generation:
                    return False
                m[record] = generation | RELEASED
                self.has_come_back(m, generation)
                return True

        mine = yield change
        if mine:
            yield self.store(f"slot_generation{slot}", 0)
        return mine

    def retire(self, slot: int, generation: int) -> Steps:
        yield self.lock("table_mutex")
        over = ()
        child = yield self.load_guarded(f"first_child{slot}")
        if child:
            over = yield from self.cut_one(child - 1)
            yield quiet(self.store(f"parent{child - 1}", 0))
            yield self.store(f"first_child{slot}", 0)
        parent = yield self.load_guarded(f"parent{slot}")
        if parent:
            yield quiet(self.store(f"parent{slot}", 0))
            yield self.store(f"first_child{parent - 1}", 0)
        yield self.store(f"ended{slot}", generation)
        yield self.store(f"record{slot}", 0)
        yield self.unlock("table_mutex")
        return over

    # ---- Pool

    def finish(self, slot: int, generation: int) -> Steps:
        mine = yield from self.claim(slot, generation)
        if mine:
            yield from self.end_all(((slot, generation),))

    def end_all(self, over: tuple[tuple[int, int], ...]) -> Steps:
        """Ends claimed requests, and those that are over by it."""
        while over:
            (slot, generation), over = over[0], over[1:]
            more = yield from self.retire(slot, generation)
            over += more
            waiting = yield self.load("waiting")  # Waiters::notify
            if waiting:
                yield self.store("bell", 1)
            del slot, generation, more, waiting

    def count_ack(self, slot: int, generation: int, device: int) -> Steps:
        child = 0
        if "children before the bit" in self.faults:
            child = yield self.load(f"first_child{slot}")
        left = yield from self.leave(slot, generation, device)
        if left not in ("others", "last"):
            return left
        if "children before the bit" not in self.faults:
            child = yield self.load(f"first_child{slot}")
        if child:
            yield from self.leave_children(slot, generation, device)
        if left == "last":
            yield from self.finish(slot, generation)
        return left

    def leave_children(self, slot: int, generation: int, device: int) -> Steps:
        yield self.lock("table_mutex")
        over = ()
        record = yield self.load(f"record{slot}")
        child = yield self.load_guarded(f"first_child{slot}")
        if record == generation and child:
            over = yield from self.bit_leaves_one(child - 1, device)
        yield self.unlock("table_mutex")
        yield from self.end_all(over)

    def ack(self, slot: int, generation: int, device: int) -> Steps:
        """Pool::ack in the owner's process, for a device that has no process of its own, or acknowledges by a
        message.
        """

        def begin(m: list[int]) -> None:
            self.begins_ack(m, generation, device)

        yield begin
        yield from self.count_ack(slot, generation, device)
        on_the_way = self.at(f"ghost_on_the_way{generation}")

        def end(m: list[int]) -> None:
            m[on_the_way] &= ~(1 << device)

        yield quiet(end)

    def device_lost(self, device: int) -> Steps:
        """With RequestTable::leave_all: each parent after its child."""
        yield from self.collect()
        yield self.lock("table_mutex")
        over: tuple[Any, ...] = ()
        for s in self.slots:
            parent = yield self.load_guarded(f"parent{s}")
            record = yield self.load(f"record{s}")
            if parent or not record:
                continue
            child = yield self.load_guarded(f"first_child{s}")
            if child:
                more = yield from self.bit_leaves_one(child - 1, device)
                over += more
            more = yield from self.bit_leaves_one(s, device)
            over += more
        yield self.unlock("table_mutex")
        yield from self.end_all(over)

    def close_by_force(self, stay: tuple[int, ...]) -> Steps:
        """Pool::close(true): the host and the devices of this process let go, and the peers `stay`."""
        leaving = tuple(d for d in self.devices if d not in stay)
        let_go = tuple(self.devices) if "a forced close ends a peer's hold" in self.faults else leaving

        def begin(m: list[int]) -> None:
            for g in self.generations:
                m[self.at(f"ghost_host{g}")] = 0
                for d in leaving:
                    m[self.at(f"ghost_reading{g}")] &= ~(1 << d)
                    m[self.at(f"ghost_gone{g}")] |= 1 << d

        yield begin
        yield from self.collect()
        yield self.lock("table_mutex")
        over: tuple[Any, ...] = ()
        for s in self.slots:
            parent = yield self.load_guarded(f"parent{s}")
            record = yield self.load(f"record{s}")
            if parent or not record:
                continue
            child = yield self.load_guarded(f"first_child{s}")
            if child:
                more = yield from self.close_one(child - 1, let_go)
                over += more
            more = yield from self.close_one(s, let_go)
            over += more
        yield self.unlock("table_mutex")
        yield from self.end_all(over)

    def close_one(self, slot: int, leaving: tuple[int, ...]) -> Steps:
        """The step of RequestTable::close_all for one request."""
        over = yield from self.host_leaves_one(slot)
        for d in leaving:
            generation = yield self.load(f"record{slot}")
            holds = yield from self.has("pending", slot, generation & ~RELEASED, d)
            if holds:
                more = yield from self.bit_leaves_one(slot, d)
                over += more
        return over

    def detach_peer(self, device: int) -> Steps:
        yield from self.collect()
        board = (
            self.at(f"dirty{device}"),
            *(self.at(f"{name}{device}.{s}") for name in ("mark", "acked") for s in self.slots),
        )

        def blank(m: list[int]) -> None:
            for i in board:
                m[i] = 0

        yield blank
        if "a lost device does not leave" not in self.faults:
            yield from self.device_lost(device)

    # ---- PolledAcks, SharedOwner, AckBoard

    def collect(self) -> Steps:
        """PolledAcks::collect(true)."""
        news = False
        for d in self.devices:
            dirty = yield self.load(f"dirty{d}")
            if dirty:
                news = True
                break
        if not news:
            if "no look at who is collecting" in self.faults:
                return
            collecting = yield self.load("collecting")
            if not collecting:
                return
            del collecting
        del dirty, news, d
        yield self.lock("collect_mutex")
        yield self.store("collecting", 1)
        for d in self.devices:
            dirty = yield self.load(f"dirty{d}")
            if not dirty:
                continue
            dirty = yield self.exchange(f"dirty{d}", 0)
            for s in self.slots:
                if "generation read before the mark is off" in self.faults:
                    generation = yield self.load(f"acked{d}.{s}")
                    mark = yield self.exchange(f"mark{d}.{s}", 0)
                    if not mark:
                        continue
                else:
                    mark = yield self.exchange(f"mark{d}.{s}", 0)
                    if not mark:
                        continue
                    generation = yield self.load(f"acked{d}.{s}")
                del mark
                # count_polled
                record = yield self.load(f"record{s}")
                if generation and record == generation:
                    yield from self.count_ack(s, generation, d)
                del generation, record
        yield self.store("collecting", 0)
        yield self.unlock("collect_mutex")

    # ---- SharedPeer, AckTally

    def peer_ack(self, slot: int, generation: int, device: int) -> Steps:
        """SharedPeer::ack. Answers in the step of its last access."""
        slot_generation = self.at(f"slot_generation{slot}")

        def begin(m: list[int]) -> int:
            self.begins_ack(m, generation, device)
            return m[slot_generation]

        now = yield begin
        if now != generation:
            yield self.answer(generation, device, LATE)
            return LATE
        del now
        holds = yield from self.has("pending", slot, generation, device)
        if not holds:
            named = yield from self.has("named", slot, generation, device)
            now = yield self.load(f"slot_generation{slot}")
            answer = LATE if now != generation else DUPLICATE if named else UNKNOWN
            yield self.answer(generation, device, answer)
            return answer
        if "marked before posted" in self.faults:
            yield from self.publish(slot, device)
        first = yield from self.post(slot, generation, device)
        if not first:
            now = yield self.load(f"slot_generation{slot}")
            answer = LATE if now != generation else DUPLICATE
            yield self.answer(generation, device, answer)
            return answer
        last = yield from self.tally_leave(slot, generation, device)
        waiting = 0
        if "the bell before the board" in self.faults:
            waiting = yield self.load("waiting")
        if "marked before posted" not in self.faults:
            yield from self.publish(slot, device)
        if "the bell before the board" not in self.faults:
            waiting = yield self.load("waiting")
        if waiting:
            yield self.store("bell", 1)
        answer = ANSWER_RELEASED if last else PENDING
        yield self.answer(generation, device, answer)
        return answer

    def answer(self, generation: int, device: int, answer: str) -> Access:
        return quiet(lambda m: self.answered(m, generation, device, answer))

    def post(self, slot: int, generation: int, device: int) -> Steps:
        if "post is a blind exchange" in self.faults:
            before = yield self.exchange(f"acked{device}.{slot}", generation)
            return before != generation
        now = yield self.load(f"acked{device}.{slot}")
        while now < generation:
            before = yield self.cas(f"acked{device}.{slot}", now, generation)
            if before == now:
                return True
            now = before
        return False

    def publish(self, slot: int, device: int) -> Steps:
        if "dirty before marked" in self.faults:
            yield self.store(f"dirty{device}", 1)
            yield self.store(f"mark{device}.{slot}", 1)
            return
        yield self.store(f"mark{device}.{slot}", 1)
        yield self.store(f"dirty{device}", 1)

    def tally_leave(self, slot: int, generation: int, device: int) -> Steps:
        """AckTally::leave. True for the one caller that is answered `released`."""
        early = None
        if "the tally reads its words before it leaves" in self.faults:
            early = yield from self.tally_held(slot, generation, 1 << device)
        word = f"left{slot}.{self.word_of(device)}"
        now = yield self.load(word)
        while True:
            if now >> 16 > generation and "a late thread clears the tally" not in self.faults:
                return False
            of = now if now >> 16 == generation else self.pack(generation, 0)
            before = yield self.cas(word, now, of | 1 << device)
            if before == now:
                break
            now = before
        del now, before, of
        if early is None:
            held = yield from self.tally_held(slot, generation, 0)
        else:
            held = early
        if held:
            return False
        answered = yield self.load(f"answered{slot}")
        if answered >= generation:
            return False
        before = yield self.cas(f"answered{slot}", answered, generation)
        return before == answered

    def tally_held(self, slot: int, generation: int, besides: int) -> Steps:
        """HolderSet::each_word: whether the words of the owner and of the tally leave a holder."""
        words = 1
        if "words are counted before the first is read" in self.faults:
            words = yield self.load(f"words{slot}")
        held = False
        w = 0
        while w < words:
            now = yield self.load(f"pending{slot}.{w}")
            if now >> 16 != generation:
                return True
            gone = yield self.load(f"left{slot}.{w}")
            if gone >> 16 != generation:
                gone = 0
            held = held or (now & 0xFFFF & ~gone & ~besides) != 0
            del now, gone
            w += 1
            if "words are counted before the first is read" not in self.faults:
                words = yield self.load(f"words{slot}")
        return held

    def rejoin(self, slot: int, generation: int, device: int) -> Steps:
        word = f"left{slot}.{self.word_of(device)}"
        now = yield self.load(word)
        while now >> 16 == generation and now >> device & 1:
            before = yield self.cas(word, now, now & ~(1 << device))
            if before == now:
                return
            now = before
