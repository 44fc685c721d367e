"""The text of a refusal is made when it is read, and describes the instant of the refusal."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from slabpool import Pool, PoolExhausted
from slabpool.errors import LateText
from tests.process.test_fork import in_child

MiB = 1 << 20


def refused(call: Callable[[], Any]) -> PoolExhausted:
    with pytest.raises(PoolExhausted) as caught:
        call()
    return caught.value.with_traceback(None)


def test_the_text_is_made_once_and_only_when_it_is_read() -> None:
    made: list[object] = []

    def make(fact: object) -> str:
        made.append(fact)
        return f"text of {fact}"

    error = PoolExhausted.later(make, 7)
    assert not made
    assert str(error) == "text of 7"
    assert error.args == ("text of 7",)
    assert repr(error) == "PoolExhausted('text of 7')"
    assert made == [7]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # with threads, from Python 3.12 on
def test_a_forked_child_reads_the_text_of_its_parents_error() -> None:
    with Pool("1MiB", name="inherited") as pool:
        view = pool.empty(MiB, "u1")
        error = refused(lambda: pool.empty(5000, "u1"))
        text = in_child(lambda: str(error))
        assert text.startswith("cannot allocate 4.883 KiB: pool 'inherited' has 1 MiB: 1 MiB live")
        assert text == str(error)
        del view


def test_a_late_text_is_as_short_as_any_other() -> None:
    assert str(LateText(lambda: "x" * 5000)) == str(PoolExhausted("x" * 5000))
    assert len(str(PoolExhausted.later(lambda: "x" * 5000))) == 900


@pytest.mark.parametrize("what", ["tensor", "request's tensor", "reserve"])
def test_the_text_tells_of_the_refusal_and_not_of_the_reading(what: str) -> None:
    with Pool("1MiB", name="small") as pool:
        holder = pool.request("holder", ["gpu0"])
        other = pool.request("other")
        view = holder.empty(MiB // 2, "u1")
        error = refused({
            "tensor": lambda: pool.empty(MiB, "u1"),
            "request's tensor": lambda: other.empty(MiB, "u1"),
            "reserve": lambda: pool.request("new", reserve=MiB),
        }[what])  # fmt: skip
        del view
        holder.close()
        holder.ack("gpu0")
        other.close()
        assert not pool.requests()
        text = str(error)
        for part in ("512 KiB live", "request 'holder' generation 1 (open): 512 KiB for", "waits for gpu0"):
            assert part in text
        assert "1 live views" in text


@pytest.mark.parametrize("carry", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_the_error_is_copied_and_pickled_as_its_text(carry: Callable[[Any], Any]) -> None:
    with Pool("1MiB") as pool:
        whole = pool.empty(MiB, "u1")
        error = refused(lambda: pool.empty(1, "u1"))
        del whole
    other = carry(error)
    assert type(other) is PoolExhausted
    assert other.args == error.args
    assert type(other.args[0]) is str


def test_an_unread_error_keeps_no_pool_alive() -> None:
    def refuse() -> tuple[PoolExhausted, weakref.ref[Pool]]:
        pool = Pool("1MiB")
        request = pool.request("r")
        request.empty(1000, "u1")
        error = refused(lambda: pool.empty(MiB, "u1"))
        request.close()
        return error, weakref.ref(pool)

    error, alive = refuse()
    gc.collect()
    assert alive() is None
    assert "request 'r' generation 1" in str(error)


def test_the_oldest_holders_are_named_too() -> None:
    with Pool("1MiB") as pool:
        requests = [pool.request(f"r{number}") for number in range(20)]
        for number, request in enumerate(requests):
            request.empty((number + 1) * 64, "u1")
        text = str(refused(lambda: pool.empty(MiB, "u1")))
        for request in requests:
            request.close()
    assert "and 15 more requests; the oldest: 'r0' " in text
    assert "'r4' " in text and "'r5' " not in text
