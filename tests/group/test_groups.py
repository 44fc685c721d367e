"""Groups: what is opened under one shares its bound; ids, closing, reports and the texts of refusals.

Invariants: a call that is refused changes nothing; a group ends with the last request under it, and all that
it set aside is back then.
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle

import pytest

import slabpool
from slabpool import (
    ForkedPoolError,
    Group,
    InvalidArgumentError,
    InvalidTypeError,
    NameInUseError,
    Pool,
    PoolExhausted,
    QuotaExceededError,
    RequestClosedError,
)

KiB = 1 << 10
PAGE = 4 * KiB


def test_requests_share_the_quota_of_their_group(pool: Pool) -> None:
    with pool.group("tenant", quota=16 * KiB) as group:
        one, two = group.request("chat"), group.request("chat", ["gpu0"])
        assert (one.group, two.group) == ("tenant", "tenant")
        one.empty(8 * KiB, "u1")
        two.empty(4 * KiB, "u1")
        child = two.child()
        assert child.group == "tenant"
        child.empty(4 * KiB, "u1")
        for request in (one, two, child):
            with pytest.raises(QuotaExceededError):
                request.empty(1, "u1")
        pool.empty(1, "u1")
        pool.request("chat").empty(1, "u1")  # neither binds others
        one.close()
        two.empty(8 * KiB, "u1")
        two.close()
        assert group.stats().nbytes == 12 * KiB, "the device still reads it"
        two.ack("gpu0")
        assert group.stats().nbytes == 0


def test_a_quota_of_a_request_bounds_it_beside_the_groups(pool: Pool) -> None:
    with pool.group("tenant", quota=16 * KiB) as group:
        one, two = group.request("one", quota=8 * KiB), group.request("two", quota=64 * KiB)
        with pytest.raises(QuotaExceededError, match="its quota of 8 KiB"):
            one.empty(9 * KiB, "u1")
        one.empty(8 * KiB, "u1")
        with pytest.raises(QuotaExceededError, match="group 'tenant' holds 8 KiB of its quota of 16 KiB"):
            two.empty(9 * KiB, "u1")
        two.empty(8 * KiB, "u1")
        assert group.stats().nbytes == 16 * KiB
        one.close()
        two.close()


def test_a_tensor_that_grows_counts_in_the_group(pool: Pool) -> None:
    with pool.group("tenant", quota=64 * KiB) as group, group.request("r") as request:
        tensor = request.growable(0, "u1", limit=1 << 20)
        tensor.extend(48 * KiB)
        assert group.stats().nbytes == 48 * KiB
        with pytest.raises(QuotaExceededError, match="group 'tenant'"):
            tensor.extend(20 * KiB)
        tensor.truncate(8 * KiB, release=True)
        assert group.stats().nbytes == 8 * KiB


# ---- ids


def test_groups_have_ids_of_their_own(pool: Pool) -> None:
    ids: list[str | int | bytes] = ["7", 7, b"7", "", "s" * 300, -(1 << 1000)]
    groups = [pool.group(id) for id in ids]
    assert [record.group_id for record in pool.groups()] == ids
    assert [group.id for group in groups] == ids
    requests = [pool.request("7", ["d"]), groups[0].request("7"), pool.request("x")]
    session = pool.session("7")
    assert pool.requests()[0].group is None and pool.requests()[1].group == "7"
    assert pool.ack("", "d") is slabpool.Ack.LATE, "the id of a group, and of no request"
    for opened in [*requests, session, *groups]:
        opened.close()
    requests[0].ack("d")
    assert pool.groups() == []


def test_an_open_group_has_its_id_alone(pool: Pool) -> None:
    group = pool.group("tenant", quota=PAGE)
    with pytest.raises(NameInUseError, match="group 'tenant' is open in pool 'tenants' already"):
        pool.group("tenant")
    request = group.request("r")
    group.close()
    again = pool.group("tenant", quota=2 * PAGE)
    assert [(r.closed, r.requests) for r in pool.groups()] == [(True, 1), (False, 0)]
    with again.request("r") as other:
        other.empty(2 * PAGE, "u1")
        request.empty(PAGE, "u1")  # each in the quota of its own
        with pytest.raises(QuotaExceededError):
            request.empty(1, "u1")
    request.close()
    assert [r.closed for r in pool.groups()] == [False]
    again.close()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"group_id": 1.5}, InvalidTypeError),
        ({"group_id": None}, InvalidTypeError),
        ({"group_id": "g", "quota": 0}, InvalidArgumentError),
        ({"group_id": "g", "quota": "many"}, InvalidArgumentError),
        ({"group_id": "g", "quota": 1.5}, InvalidTypeError),
        ({"group_id": "g", "reserve": -1}, InvalidArgumentError),
        ({"group_id": "g", "reserve": 2 * PAGE, "quota": PAGE}, InvalidArgumentError),
        ({"group_id": "g", "priority": "high"}, InvalidTypeError),
        ({"group_id": "g", "priority": 1 << 31}, InvalidArgumentError),
        ({"group_id": "g", "reserve": "2MiB"}, slabpool.TensorTooLargeError),
    ],
)
def test_a_bad_group_changes_nothing(
    pool: Pool, arguments: dict[str, object], error: type[Exception]
) -> None:
    before = pool.stats()
    with pytest.raises(error):
        pool.group(**arguments)  # type: ignore[arg-type]
    assert pool.groups() == []
    assert pool.stats().reserved == before.reserved


# ---- closing


def test_nothing_is_opened_under_a_closed_group_and_it_ends_with_its_last_request(pool: Pool) -> None:
    with pool.group("tenant", quota=64 * KiB, reserve=32 * KiB) as group:
        request = group.request("r", ["gpu0"])
    assert group.closed
    for call in (lambda: group.request("x"), lambda: group.session("x")):
        with pytest.raises(
            RequestClosedError, match="group 'tenant' is closed: nothing can be opened under it"
        ):
            call()
    request.empty(16 * KiB, "u1")  # it goes on, out of the reserve
    child = request.child(["gpu0"])
    assert (pool.groups()[0].reserved, pool.stats().reserved) == (16 * KiB, 16 * KiB)
    request.close()
    assert pool.groups() != []
    request.ack("gpu0")
    assert (pool.groups(), pool.stats().reserved) == ([], 0)
    assert child.state is slabpool.RequestState.RELEASED
    group.close()
    assert group.stats()[1:5] == (0, 64 * KiB, 0, 0)
    assert str(group.stats()) == "group 'tenant': over"


def test_a_group_that_nothing_refers_to_is_closed(pool: Pool) -> None:
    request = pool.group("tenant", reserve=PAGE).request("r")
    assert not pool.groups()[0].closed, "its request may open children"
    request.close()
    del request
    assert pool.groups() == []
    session = pool.group("tenant").session("s")
    del session
    gc.collect()
    assert [r.closed for r in pool.groups()] == [False], "its session lives"
    pool.sessions()
    with pytest.raises(NameInUseError):
        pool.group("tenant")


def test_an_empty_group_keeps_no_pool_from_closing() -> None:
    pool = Pool("1MiB")
    group = pool.group("tenant", reserve="64KiB")
    request = group.request("r")
    with pytest.raises(slabpool.PoolBusyError):
        pool.close()
    request.close()
    pool.close()
    assert group.closed
    group.close()
    with pytest.raises(slabpool.PoolClosedError):
        group.request("r")
    with pytest.raises(slabpool.PoolClosedError):
        pool.group("other")


def test_a_forced_close_ends_groups() -> None:
    pool = Pool("1MiB")
    group = pool.group("tenant", quota="512KiB")
    request = group.request("r", ["gpu0"])
    array = request.zeros(PAGE, "u1")
    pool.close(force=True)
    assert pool.groups() == [] and array.sum() == 0


# ---- reserve


def test_the_reserve_of_a_group_is_for_its_requests_alone(pool: Pool) -> None:
    group = pool.group("tenant", reserve="512KiB")
    assert pool.stats().reserved == 512 * KiB
    held = pool.empty(512 * KiB, "u1")
    with pytest.raises(PoolExhausted):
        pool.empty(PAGE, "u1")
    for _ in range(3):  # what a request gives back is the group's again
        with group.request("a") as one, group.request("b", reserve="256KiB") as two:
            assert group.stats().reserved == 256 * KiB
            one.empty(256 * KiB, "u1")
            two.empty(256 * KiB, "u1")
            assert pool.stats().reserved == group.stats().reserved == 0
    assert group.stats().reserved == pool.stats().reserved == 512 * KiB
    del held
    group.close()


def test_a_tensor_that_outgrows_its_requests_reserve_draws_on_the_groups(pool: Pool) -> None:
    group = pool.group("tenant", reserve="512KiB")
    held = pool.empty(512 * KiB, "u1")
    with group.request("r", reserve="64KiB") as request:
        tensor = request.growable(0, "u1", limit=1 << 20)
        for _ in range(8):
            tensor.extend(64 * KiB)
        with pytest.raises(PoolExhausted, match="for request 'r' generation 2 of group 'tenant'"):
            tensor.extend(64 * KiB)
    del tensor
    assert group.stats().reserved == 512 * KiB
    del held
    group.close()


def test_what_is_promised_to_a_request_counts_in_the_quota_of_its_group(pool: Pool) -> None:
    with pool.group("tenant", quota="256KiB") as group:
        one = group.request("one", reserve="192KiB")
        assert group.stats().nbytes == 192 * KiB
        with pytest.raises(
            QuotaExceededError,
            match=r"(?s)cannot reserve 128 KiB for request 'two' of group 'tenant': "
            r"group 'tenant' holds 192 KiB of its quota of 256 KiB; its largest: 'one' 0 bytes "
            r"\(192 KiB of its reserve left\)",
        ):
            group.request("two", reserve="128KiB")
        one.empty(128 * KiB, "u1")
        assert group.stats().nbytes == 192 * KiB, "out of what was counted"
        one.empty(96 * KiB, "u1")
        assert group.stats().nbytes == 224 * KiB
        device = one.child()
        one.close()
        assert group.stats().nbytes == 0
        assert device.state is slabpool.RequestState.RELEASED
        two = group.request("two", ["gpu0"], reserve="256KiB")
        two.empty(PAGE, "u1")
        two.close()
        assert group.stats().nbytes == PAGE, "a promise ends with the host's hold"
        two.ack("gpu0")


def test_a_promise_counts_as_the_bytes_that_were_asked_for(pool: Pool) -> None:
    with pool.group("tenant", quota=10_000) as group, group.request("r", reserve=10_000) as request:
        assert (group.stats().nbytes, pool.stats().reserved) == (10_000, 3 * PAGE)
        request.empty(2 * PAGE, "u1")
        with pytest.raises(QuotaExceededError):
            request.empty(PAGE, "u1")
        assert group.stats().nbytes == 10_000


# ---- reports


def test_reports_name_the_group(pool: Pool) -> None:
    group = pool.group("tenant", quota="512KiB", reserve="64KiB", priority=3)
    request = group.request("chat", ["gpu0"])
    request.empty(PAGE, "u1")
    session = group.session("kept")
    with session.request() as turn:
        session.keep("kv", turn.zeros(PAGE, "u1"))
    texts = [str(record) for record in pool.requests()]
    assert "request 'chat' generation 2 of group 'tenant' (open)" in texts[0]
    assert "session 'kept' of group 'tenant' keeps 'kv'" in texts[1]
    assert "of group 'tenant'" in str(pool.sessions()[0]) and pool.sessions()[0].group == "tenant"
    assert "group='tenant'" in repr(pool.requests()[0])
    request.close()
    assert "of group 'tenant'" in str(pool.leaks()[0])
    (record,) = pool.groups()
    assert record == group.stats()._replace(age=record.age)
    assert record[:9] == ("tenant", 2 * PAGE, 512 * KiB, 64 * KiB, 56 * KiB, 1, 1, 3, False)
    assert record.opened_at.startswith(__file__)
    assert str(record).startswith(
        "group 'tenant': 8 KiB used of a quota of 512 KiB, 56 KiB of its reserve left, 1 requests, 1 sessions"
    )
    assert repr(group) == "<Group 'tenant': 8192 of 524288 bytes, 1 requests, 1 sessions>"
    request.ack("gpu0")
    session.close()
    group.close()
    assert "closed" in repr(group)


def test_a_refusal_names_the_largest_holders_of_the_group(pool: Pool) -> None:
    with pool.group("tenant", quota="256KiB") as group:
        requests = [group.request(f"chat-{i}") for i in range(8)]
        for i, request in enumerate(requests):
            request.empty((i + 1) * PAGE, "u1")
        pool.request("other").empty(128 * KiB, "u1")
        with pytest.raises(QuotaExceededError) as caught:
            requests[0].empty(128 * KiB, "u1")
        text = str(caught.value)
        assert text.startswith(
            "cannot allocate 128 KiB for request 'chat-0' generation 2 of group 'tenant': group 'tenant' "
            "holds 144 KiB of its quota of 256 KiB; its largest: 'chat-7' 32 KiB, 'chat-6' 28 KiB"
        )
        assert "other" not in text
        assert text.endswith(
            "and 3 more. Close some of them, wait with timeout=, or open the group with a larger quota="
        )
        assert pickle.loads(pickle.dumps(caught.value)).args == (text,)
        for request in requests:
            request.close()


def test_a_refusal_says_why_the_sessions_of_the_group_stay(pool: Pool) -> None:
    with pool.group("tenant", quota="256KiB") as group, group.request("chat") as request:
        sessions = [group.session(i) for i in range(4)]
        for session in sessions:
            with session.request() as turn:
                session.keep("kv", turn.empty(32 * KiB, "u1"))
        elsewhere = pool.session(0)
        with elsewhere.request() as turn:
            elsewhere.keep("kv", turn.empty(64 * KiB, "u1"))
        view = sessions[1]["kv"]
        with sessions[0].request(), sessions[2].pin():
            with pytest.raises(QuotaExceededError) as caught:
                request.empty(200 * KiB, "u1")
            text = " Its sessions keep 128 KiB: 1 in use, 1 pinned, 1 with live views, 1 idle. Close"
            assert text in str(caught.value)
        del view
        for session in (*sessions, elsewhere):
            session.close()
        with pytest.raises(QuotaExceededError) as caught:
            request.empty(257 * KiB, "u1")
        assert "sessions" not in str(caught.value)


def test_a_refusal_of_the_pool_names_the_groups_with_the_largest_promises(pool: Pool) -> None:
    groups = [pool.group(f"g{i}", reserve=(i + 1) * 64 * KiB) for i in range(4)]
    empty = pool.group("empty", quota=64 * KiB)
    with groups[3].request("r") as request:
        request.empty(192 * KiB, "u1")
        with pytest.raises(PoolExhausted) as caught:
            pool.empty(pool.capacity, "u1")
        lines = str(caught.value).splitlines()
        assert "request 'r' generation 6 of group 'g3'" in lines[1]
        here = f"of its reserve left, opened at {__file__}:"
        assert [line.partition(here)[0] for line in lines[2:]] == [
            "  group 'g2': 192 KiB ", "  group 'g1': 128 KiB ", "  group 'g0': 64 KiB ",
        ]  # fmt: skip
    for group in (*groups, empty):
        group.close()
    with pytest.raises(PoolExhausted) as caught:
        pool.empty(pool.capacity, "u1"), pool.empty(1, "u1")
    assert "group" not in str(caught.value)


def test_an_id_in_several_groups_is_cancelled_by_generation(pool: Pool) -> None:
    with pool.group("a") as a, pool.group("b") as b:
        requests = [scope.request("u") for scope in (a, b, pool)]
        with pytest.raises(slabpool.AmbiguousRequestError) as caught:
            pool.cancel("u")
        for request in requests:
            name = (
                f"{request.generation} of group {request.group!r}"
                if request.group
                else f"{request.generation}"
            )
            assert name in str(caught.value)
            assert pool.cancel("u", generation=request.generation)


def test_a_group_is_not_copied(pool: Pool) -> None:
    with pool.group("tenant") as group:
        for call in (lambda: copy.copy(group), lambda: pickle.dumps(group), type(group)):
            with pytest.raises(InvalidTypeError):
                call()


# ---- children


def test_a_child_has_a_budget_inside_its_parents(pool: Pool) -> None:
    with pool.request("r", quota="64KiB", reserve="32KiB") as request:
        with request.child(quota="16KiB", reserve="16KiB") as step:
            assert (step.quota, request.quota) == (16 * KiB, 64 * KiB)
            assert pool.stats().reserved == 32 * KiB, "out of its parent's"
            assert [r.reserved for r in pool.requests()] == [16 * KiB, 16 * KiB]
            step.empty(16 * KiB, "u1")
            with pytest.raises(QuotaExceededError, match="its quota of 16 KiB"):
                step.empty(1, "u1")
            request.empty(48 * KiB, "u1")
            full = "request 'r' generation 1, around it, holds 64 KiB of its"
            with request.child(quota="64KiB") as other, pytest.raises(QuotaExceededError, match=full):
                other.empty(1, "u1")
        request.empty(16 * KiB, "u1")
    with pytest.raises(InvalidArgumentError, match=r"reserve \(8 KiB\) must not be larger than quota"):
        pool.request("r").child(quota=PAGE, reserve=2 * PAGE)


def test_a_reserve_that_a_quota_around_it_refuses_is_not_made(pool: Pool) -> None:
    with pool.request("r", quota="64KiB") as request:
        request.empty(48 * KiB, "u1")
        with pytest.raises(
            QuotaExceededError,
            match="request 'r' generation 1, around it, holds 48 KiB of its quota of 64 KiB",
        ):
            request.child(reserve="32KiB")
        assert pool.stats().reserved == 0 and len(pool.requests()) == 1
        with request.child(reserve="16KiB") as step:
            step.empty(16 * KiB, "u1")


def test_a_child_has_a_lease_of_its_own(pool: Pool) -> None:
    request = pool.request("r", ["gpu0"], lease=1000)
    step = request.child(["gpu0"], lease=1e-9)
    inherits = request.child(["gpu0"])
    assert [r.state.value for r in pool.requests()] == ["open", "in_doubt", "open"]
    for one in (step, inherits, request):
        one.close()
    request.ack("gpu0")


def test_a_forked_child_leaves_the_group_alone(pool: Pool) -> None:
    with pool.group("tenant", reserve=PAGE) as group:
        process = multiprocessing.get_context("fork").Process(target=in_a_fork, args=(group,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert not group.closed and group.stats().reserved == PAGE


def in_a_fork(group: Group) -> None:
    assert repr(group) == "<Group 'tenant': inherited through fork>"
    for call in (group.stats, group.close, lambda: group.request("r"), lambda: group.session("s")):
        with pytest.raises(ForkedPoolError):
            call()
    with group:
        pass
