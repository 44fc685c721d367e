"""Bad input about requests and devices: ids, names, sizes, acks by strangers, calls on closed requests.

Each raises its own error, whose message says what was passed, what was expected and what to do, and changes
nothing in the pool (tests/scene.py).
"""

from __future__ import annotations

import copy
import enum
import pickle
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import slabpool
from slabpool import Ack, Layout, PoolBusyError, PoolExhausted
from slabpool import AmbiguousRequestError as Ambiguous
from slabpool import DuplicateDeviceError as Duplicate
from slabpool import InvalidArgumentError as BadValue
from slabpool import InvalidTypeError as BadType
from slabpool import QuotaExceededError as QuotaExceeded
from slabpool import RequestClosedError as Closed
from slabpool import TensorTooLargeError as TooLarge
from slabpool import TooManyDevicesError as TooMany
from slabpool import UnknownDeviceError as Unknown
from tests.scene import Scene, refused

MAX_DEVICES = 4096
LAYOUT = Layout({"a": (1, "u1")})


class Label(str, enum.Enum):
    MINE = "gpu0"


def opens(*args: Any, **options: Any) -> Callable[[Scene], object]:
    return lambda scene: scene.pool.request(*args, **options)


Case = tuple[str, Callable[[Scene], object], type[Exception], str]

OPENING: list[Case] = [
    ("id float", opens(1.5), BadType, "request_id must be a str, an int or bytes ... 1.5 ... float"),
    ("id None", opens(None), BadType, "request_id ... None"),
    ("id bool", opens(True), BadType, "request_id ... True ... bool"),
    ("id list", opens(["r"]), BadType, "request_id ... ['r'] ... list"),
    ("device float", opens("r", [1.0]), BadType, "device must be a str or an int ... 1.0 ... float"),
    ("device bytes", opens("r", [b"gpu0"]), BadType, "device must be a str or an int ... b'gpu0'"),
    ("device list", opens("r", ["gpu0", ["gpu1"]]), BadType, "device ... ['gpu1'] ... list"),
    ("device bool", opens("r", [False]), BadType, "device ... False"),
    ("devices str", opens("r", "gpu0"), BadType, "devices must be several names ... 'gpu0'"),
    ("devices int", opens("r", 3), BadType, "devices must be an iterable ... 3"),
    ("devices None", opens("r", None), BadType, "devices must be an iterable ... None"),
    ("too many", opens("r", range(5000)), TooMany, "5000 ... 'scene' ... 4096 ... another pool"),
    ("twice", opens("r", ["a", "b", "a"]), Duplicate, "'a' is named twice ... 'r' ... once"),
    ("twice, int", opens("r", [7, 7]), Duplicate, "7 is named twice"),
    ("twice, enum", opens("r", ["gpu0", Label.MINE]), Duplicate, "gpu0 ... twice"),
    ("twice, often", opens("r", ["a"] * 9999), Duplicate, "'a' is named twice"),
    ("reserve 2 MiB", opens("r", reserve="2MiB"), TooLarge, "2 MiB ... 'r' ... 'scene', 1 MiB"),
    ("reserve 1 MiB", opens("r", reserve="1MiB"), PoolExhausted, "1 MiB ... 'r' ... 'scene' ... 'chat'"),
    ("reserve text", opens("r", reserve="lots"), BadValue, "reserve must be ... '2GiB' ... 'lots'"),
    ("reserve -5", opens("r", reserve=-5), BadValue, "reserve must be from 0 ... -5"),
    ("reserve 1.5", opens("r", reserve=1.5), BadType, "reserve must be bytes ... 1.5"),
    ("reserve > quota", opens("r", reserve=9216, quota=8192), BadValue, "9 KiB ... 8 KiB ... 'r'"),
    ("quota 0", opens("r", quota=0), BadValue, "quota must be from 1 ... 0"),
    ("quota 1.5", opens("r", quota=1.5), BadType, "quota must be bytes ... 1.5"),
    ("lease 0", opens("r", lease=0), BadValue, "lease must be more than 0 ... 0"),
    ("lease -1", opens("r", lease=-1), BadValue, "lease must be more than 0 ... -1"),
    ("lease nan", opens("r", lease=float("nan")), BadValue, "lease must be ... nan"),
    ("lease inf", opens("r", lease=float("inf")), BadValue, "lease must be ... inf"),
    ("lease text", opens("r", lease="1s"), BadType, "lease must be seconds ... '1s'"),
    ("lease huge", opens("r", lease=10**400), BadValue, "lease must be ... at most 1e9"),
    ("lease bytes", opens("r", lease=b"1"), BadType, "lease must be seconds ... b'1' of type bytes"),
    ("timeout text", opens("r", timeout="soon"), BadType, "timeout must be seconds ... 'soon'"),
    ("timeout -1", opens("r", timeout=-1), BadValue, "timeout must be seconds from 0 on ... -1"),
]  # fmt: skip

ACKS: list[Case] = [
    ("stranger", lambda s: s.req.ack("gpu7"), Unknown, "'gpu7' ... 'chat' ... 'gpu0', 'gpu1' ... add_device"),
    ("another's", lambda s: s.closed.ack("gpu1"), Unknown, "'gpu1' was never named ... 'closed' ... 'gpu0'"),
    ("another's, late", lambda s: s.over.ack("gpu1"), Unknown, "'gpu1' was never named ... 'over'"),
    ("float", lambda s: s.req.ack(0.0), BadType, "device must be a str or an int ... 0.0 ... float"),
    ("list", lambda s: s.req.ack([]), BadType, "device must be a str or an int ... [] ... list"),
    ("None", lambda s: s.req.ack(None), BadType, "device ... None"),
    ("remove stranger", lambda s: s.req.remove_device("gpu7"), Unknown, "'gpu7' was never named ... 'chat'"),
    ("by id: stranger", lambda s: s.pool.ack("chat", "gpu7"), Unknown, "'gpu7' ... 'scene' ... 'gpu0'"),
    ("by id: another's", lambda s: s.pool.ack("closed", "gpu1"), Unknown, "'gpu1' ... 'closed' ... 'gpu0'"),
    ("by id: which", lambda s: s.pool.ack("twin", "gpu0"), Ambiguous, "'twin' ... 'gpu0' ... generation="),
    ("by id: bad id", lambda s: s.pool.ack(1.5, "gpu0"), BadType, "request_id must be ... 1.5"),
    ("by id: bool", lambda s: s.pool.ack("chat", False), BadType, "device ... False"),
    ("gen text", lambda s: s.pool.ack("chat", "gpu0", generation="1"), BadType, "generation ... int ... '1'"),
    ("gen -1", lambda s: s.pool.ack("chat", "gpu0", generation=-1), BadValue, "generation ... -1"),
    ("gen 0", lambda s: s.pool.ack("chat", "gpu0", generation=0), BadValue, "generation ... 0"),
    ("gen huge", lambda s: s.pool.ack("chat", "gpu0", generation=1 << 64), BadValue, "generation ... 18446"),
    ("lost stranger", lambda s: s.pool.device_lost("gpu7"), Unknown, "'gpu7' was never named ... 'scene'"),
    ("lost float", lambda s: s.pool.device_lost(1.0), BadType, "device ... 1.0"),
    ("heartbeat stranger", lambda s: s.pool.heartbeat("gpu7"), Unknown, "'gpu7' was never named ... 'scene'"),
    ("heartbeat None", lambda s: s.pool.heartbeat(None), BadType, "device ... None"),
]  # fmt: skip

HOST: list[Case] = [
    ("add again", lambda s: s.req.add_device("gpu0"), Duplicate, "'gpu0' already ... 'chat' ... once"),
    ("add to closed", lambda s: s.closed.add_device("gpu1"), Closed, "'closed' ... by the host ... new"),
    ("add to released", lambda s: s.over.add_device("gpu0"), Closed, "'over' ... released ... new request"),
    ("add float", lambda s: s.req.add_device(1.0), BadType, "device ... 1.0"),
    ("child of stranger", lambda s: s.req.child(["gpu7"]), Unknown, "'gpu7' ... 'chat' ... 'gpu0', 'gpu1'"),
    ("child twice", lambda s: s.req.child(["gpu0", "gpu0"]), Duplicate, "'gpu0' is named twice ... 'chat'"),
    ("child of str", lambda s: s.req.child("gpu0"), BadType, "devices must be several names ... 'gpu0'"),
    ("child of closed", lambda s: s.closed.child(["gpu0"]), Closed, "'closed' ... closed ... child"),
    ("child of released", lambda s: s.over.child(), Closed, "'over' ... released ... child"),
    ("empty, closed", lambda s: s.closed.empty(3), Closed, "'closed' ... closed by ... new request"),
    ("zeros, released", lambda s: s.over.zeros(3), Closed, "'over' ... released ... new request"),
    ("full, released", lambda s: s.over.full(3, 1.0), Closed, "'over' ... released"),
    ("copy, closed", lambda s: s.closed.copy([1]), Closed, "'closed' ... closed by the host"),
    ("layout, closed", lambda s: s.closed.allocate(LAYOUT), Closed, "'closed' ... closed by the host"),
    ("waiting, closed", lambda s: s.closed.empty(3, timeout=60), Closed, "'closed' ... closed by the host"),
    ("not a layout", lambda s: s.req.allocate({"a": (1, "u1")}), TypeError, "layout ... Layout ... dict"),
    ("no layout", lambda s: s.req.allocate(None), TypeError, "layout ... None"),
    ("quota", lambda s: s.bounded.empty(65537, "u1"), QuotaExceeded, "'bounded' ... 64 KiB ... quota="),
    ("quota, waiting", lambda s: s.bounded.empty(65537, "u1", timeout=60), QuotaExceeded, "quota of 64 KiB"),
    ("wait text", lambda s: s.closed.wait("soon"), BadType, "timeout must be seconds ... 'soon'"),
    ("wait -1", lambda s: s.closed.wait(-1), BadValue, "timeout must be seconds from 0 on ... -1"),
    ("close the pool", lambda s: s.pool.close(), PoolBusyError, "'chat' ... opened at ... force=True"),
    ("make a Request", lambda s: slabpool.Request(), BadType, "Pool.request"),
    ("make Tensors", lambda s: slabpool.Tensors(), BadType, "Request.allocate"),
    ("new Request", lambda s: slabpool.Request.__new__(slabpool.Request), BadType, "Pool.request"),
    ("new Tensors", lambda s: slabpool.Tensors.__new__(slabpool.Tensors), BadType, "Request.allocate"),
    ("copy a Request", lambda s: copy.copy(s.req), BadType, "Request ... cannot be copied or pickled"),
    ("pickle a pool", lambda s: pickle.dumps(s.pool), BadType, "'scene' ... cannot be copied or pickled"),
    ("pickle Tensors", lambda s: pickle.dumps(s.tensors), BadType, "copy or pickle the arrays"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), [c[1:] for c in OPENING], ids=[c[0] for c in OPENING])
def test_opening(scene: Scene, call: Any, error: type[Exception], text: str) -> None:
    refused(scene, call, error, text)


@pytest.mark.parametrize(("call", "error", "text"), [c[1:] for c in ACKS], ids=[c[0] for c in ACKS])
def test_acks(scene: Scene, call: Any, error: type[Exception], text: str) -> None:
    refused(scene, call, error, text)


@pytest.mark.parametrize(("call", "error", "text"), [c[1:] for c in HOST], ids=[c[0] for c in HOST])
def test_the_hosts_calls(scene: Scene, call: Any, error: type[Exception], text: str) -> None:
    refused(scene, call, error, text)


def test_late_acks_by_strangers_do_not_count_for_the_next_request_in_the_slot(scene: Scene) -> None:
    req = scene.pool.request("slot", ["gpu0"])
    req.close()
    req.ack("gpu0")
    scene.pool.request("slot", ["gpu1"]).cancel()
    refused(scene, lambda s: req.ack("gpu1"), Unknown, "'gpu1' was never named ... 'slot'")
    assert req.ack("gpu0") is Ack.LATE


# ---- names of devices


def test_too_many_devices_takes_no_names(scene: Scene) -> None:
    with pytest.raises(TooMany):
        scene.pool.request("r", [f"d{i}" for i in range(MAX_DEVICES)])  # two too many with gpu0 and gpu1
    refused(scene, lambda s: s.pool.heartbeat("d0"), Unknown, "'d0'")
    names = [f"d{i}" for i in range(MAX_DEVICES - 2)]
    with scene.pool.request("r", names) as req:
        assert len(req.pending) == MAX_DEVICES - 2
        refused(scene, lambda s: s.req.add_device("more"), TooMany, "'more' ... 'scene' ... 4096")
        refused(scene, opens("s", ["gpu0", "more"]), TooMany, "'scene' ... 4096")
    scene.pool.request("known names only", [*names[:10], "gpu0"]).cancel()


def test_child_takes_no_names(scene: Scene) -> None:
    child = scene.req.child()
    refused(scene, lambda s: s.req.child(["typo"]), Unknown, "'typo'")
    refused(scene, lambda s: child.add_device("typo"), Unknown, "'typo'")
    child.close()
    refused(scene, lambda s: s.pool.device_lost("typo"), Unknown, "'typo'")


def test_child_can_only_name_devices_its_parent_waits_for(scene: Scene) -> None:
    child = scene.req.child(["gpu0"])
    scene.pool.request("other", ["gpu5"]).cancel()
    refused(scene, lambda s: child.add_device("gpu5"), Unknown, "'gpu5' ... 'chat' ... parent, generation 1")
    child.add_device("gpu1")
    assert child.pending == {"gpu0", "gpu1"}
    scene.req.ack("gpu1")
    assert child.pending == {"gpu0"}
    refused(scene, lambda s: child.add_device("gpu1"), Unknown, "'gpu1' ... 'chat'")
    refused(scene, lambda s: s.req.child(["gpu1"]), Unknown, "'gpu1' ... 'chat'")
    child.close()


def test_text_and_number_are_two_devices(scene: Scene) -> None:
    req = scene.pool.request("r", ["0", 0])
    req.close()
    assert req.ack(0) is Ack.PENDING
    assert req.pending == {"0"}
    assert req.ack("0") is Ack.RELEASED


def test_long_lists_of_names_are_shortened_in_messages(scene: Scene) -> None:
    req = scene.pool.request("r", range(100))
    refused(scene, lambda s: req.ack("gpu0"), Unknown, "'gpu0' ... 0, 1 ... and 95 more")
    req.close()


# ---- acks that race with the end


def test_acks_race_with_close_cancel_and_loss() -> None:
    devices = ["gpu0", "gpu1", "gpu2"]
    with slabpool.Pool("1MiB") as pool:
        pool.request("names", devices).cancel()
        for device in devices:
            pool.device_lost(device)
        start = threading.Barrier(8)
        answers: list[Any] = []
        box: list[slabpool.Request] = []
        rounds = 200

        def run(step: Callable[[], object]) -> None:
            for _ in range(rounds):
                start.wait()
                try:
                    answers.append(step())
                except slabpool.SlabpoolError as error:
                    answers.append(error)
                start.wait()

        steps: list[Callable[[], object]] = [
            lambda: box[-1].ack("gpu0"), lambda: box[-1].ack("gpu1"), lambda: box[-1].ack("gpu2"),
            lambda: box[-1].ack("gpu1"), lambda: box[-1].cancel(), lambda: box[-1].close(),
            lambda: pool.device_lost("gpu2"),
        ]  # fmt: skip
        threads = [threading.Thread(target=run, args=(step,)) for step in steps]
        for thread in threads:
            thread.start()
        for _ in range(rounds):
            box.append(pool.request("r", devices))
            box[-1].zeros(1000)
            start.wait()
            start.wait()
            assert box[-1].state is slabpool.RequestState.RELEASED
            assert pool.stats().live == 0
        for thread in threads:
            thread.join()
        assert not [answer for answer in answers if isinstance(answer, Exception)]
        stats = pool.stats()
        assert (stats.allocations, stats.frees) == (rounds, rounds)
        kinds = Counter(answer for answer in answers if isinstance(answer, Ack))
        assert kinds[Ack.RELEASED] <= rounds
        # gpu1 acknowledged twice a round; one of the two acks counted.
        assert kinds[Ack.DUPLICATE] + kinds[Ack.LATE] >= rounds
