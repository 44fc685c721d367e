"""`help` and `inspect` show a signature of every public call, a description of every field of a record."""

from __future__ import annotations

import inspect
import re

import pytest

import slabpool

CLASSES = sorted(n for n in slabpool.__all__ if inspect.isclass(getattr(slabpool, n)))
# Objects of these are made by calls of others, and making one by hand raises.
MADE_BY_OTHERS = {
    "DeviceArray", "Group", "GrowableTensor", "Peer", "PressureWatch", "Request", "Session", "Tensors",
    "TensorRef",
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_every_call_has_a_signature(name: str) -> None:
    public = getattr(slabpool, name)
    if issubclass(public, BaseException):
        return
    if name not in MADE_BY_OTHERS:
        inspect.signature(public)
    for member, value in vars(public).items():
        if not member.startswith("_") and callable(value):
            assert "*args" not in str(inspect.signature(value)), member


def test_defaults_are_shown() -> None:
    assert list(inspect.signature(slabpool.Layout).parameters) == ["fields"]
    signature = inspect.signature(slabpool.Pool.empty)
    assert str(signature) == ("(self, /, shape, dtype='float64', *, align=None, timeout=None, priority=None)")
    assert list(inspect.signature(slabpool.Pool).parameters)[:3] == ["capacity", "memory", "name"]
    assert not (inspect.getdoc(slabpool.Request.growable) or "").startswith("growable(")


@pytest.mark.parametrize("name", [n for n in CLASSES if hasattr(getattr(slabpool, n), "_fields")])
def test_every_field_is_described(name: str) -> None:
    record = getattr(slabpool, name)
    described = (inspect.getdoc(record) or "").partition("Attributes\n----------\n")[2].partition("\n\n")[0]
    assert re.findall(r"^(\w+) : ", described, re.MULTILINE) == list(record._fields)


def test_every_answer_and_state_is_described() -> None:
    for kind in (slabpool.Ack, slabpool.RequestState):
        for member in kind:
            assert f"\n{member.name}\n    " in (inspect.getdoc(kind) or "")
