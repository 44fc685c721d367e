"""Reports about a request: its record, the line that opened it, and a warning if it was forgotten."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from slabpool import Ack, Pool, RequestState


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("16MiB") as pool:
        yield pool
        assert pool._verify() is None


def test_records(pool: Pool) -> None:
    line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
    first = pool.request("first", ["gpu1", "gpu0"])
    first.empty(1000)
    kept = first.empty(10)
    second = pool.request(2)
    records = pool.requests()
    assert [r.request_id for r in records] == ["first", 2]
    record = records[0]
    assert (record.generation, record.parent, record.state) == (first.generation, None, RequestState.OPEN)
    assert (record.nbytes, record.live_views) == (8192 + 128, 1)
    assert record.pending == {"gpu0", "gpu1"}
    assert record.opened_at == f"{__file__}:{line}"
    assert 0 <= records[1].age <= record.age < 60
    assert "'first'" in str(record)
    assert f"{__file__}:{line}" in str(record)
    assert "gpu0, gpu1" in str(record)
    assert [r.generation for r in pool.leaks()] == [r.generation for r in records]
    assert pool.leaks(3600) == []
    assert f"opened at {__file__}:{line}" in repr(first)
    with pytest.raises(AttributeError):
        record.nbytes = 0  # type: ignore[misc]
    del kept
    second.close()
    first.cancel()
    first.ack("gpu0")
    first.ack("gpu1")
    assert pool.requests() == []
    assert "released" in repr(first)


def test_forgotten_open_request_is_closed_with_a_warning_that_names_its_line(pool: Pool) -> None:
    req = pool.request("forgotten", ["gpu0"])
    line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    req.empty(10)
    gc.collect()  # collect what other tests left
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del req
        gc.collect()
    (message,) = [str(w.message) for w in caught if "'forgotten'" in str(w.message)]
    assert caught[0].category is ResourceWarning
    assert f"{__file__}:{line}" in message
    assert "close()" in message
    (record,) = pool.requests()
    assert (record.state, record.pending) == (RequestState.DRAINING, {"gpu0"})
    assert pool.ack("forgotten", "gpu0") is Ack.RELEASED


def test_forgotten_request_is_closed_even_if_warnings_are_errors(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda hook: unraisable.append(hook.exc_value))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.request("forgotten")
        gc.collect()
    assert pool.requests() == []
    assert [type(error) for error in unraisable] == [ResourceWarning]
    unraisable.clear()


def test_no_warning_for_requests_that_were_closed_cancelled_or_cut(pool: Pool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.request("a", ["gpu0"]).close()
        pool.request("b").cancel()
        with Pool("1MiB") as other:
            req = other.request("c", ["gpu0"])
            other.close(force=True)
        del req
        parent = pool.request("d")
        child = parent.child()
        parent.close()
        del child, parent
        gc.collect()
    assert pool.device_lost("gpu0") == 1


def test_records_are_frozen_values() -> None:
    pool = Pool("1MiB")
    pool.request("r", devices=["a"])
    (record,) = pool.requests()
    assert record._asdict()["request_id"] == "r"
    other = record._replace(generation=7)
    assert other.generation == 7 and other != record and len({record, other, record}) == 2
    assert pickle.loads(pickle.dumps(record)) == record == copy.deepcopy(record)
    assert type(record)(*(getattr(record, name) for name in record._fields)) == record
    for change in (lambda: setattr(record, "generation", 1), lambda: delattr(record, "generation")):
        with pytest.raises(AttributeError):
            change()
    with pytest.raises(TypeError):
        type(record)(request_id="r")
    with pytest.raises((ValueError, TypeError), match="nothing"):  # TypeError from Python 3.13 on
        record._replace(nothing=1)
