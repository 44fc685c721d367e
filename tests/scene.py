"""A pool with requests in every state, and the check that a refused call says why and changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import slabpool


@dataclasses.dataclass
class Scene:
    """A pool of 1 MiB, "scene", with its requests and arrays."""

    pool: slabpool.Pool
    req: slabpool.Request  # "chat": open; waits for gpu0 and gpu1
    closed: slabpool.Request  # "closed": closed; waits for gpu0
    over: slabpool.Request  # "over": released; its device was gpu0
    bounded: slabpool.Request  # "bounded": open, with a quota of 64 KiB
    twins: list[slabpool.Request]  # two of "twin", both closed and waiting for gpu0
    array: np.ndarray[Any, Any]  # in "chat", all sevens
    tensors: slabpool.Tensors  # in "chat"


def make_scene() -> Scene:
    """A scene; the caller closes its pool with ``force=True``."""
    pool = slabpool.Pool("1MiB", name="scene")
    req = pool.request("chat", ["gpu0", "gpu1"])
    array = req.full(1000, 7.0)
    over = pool.request("over", ["gpu0"])
    over.close()
    over.ack("gpu0")
    closed = pool.request("closed", ["gpu0"])
    closed.close()
    twins = [pool.request("twin", ["gpu0"]) for _ in range(2)]
    for twin in twins:
        twin.close()
    tensors = req.allocate(slabpool.Layout({"k": (8, "f4")}))
    return Scene(pool, req, closed, over, pool.request("bounded", quota="64KiB"), twins, array, tensors)


def says(raised: pytest.ExceptionInfo[BaseException], text: str) -> None:
    """The message holds the parts of `text`, which are separated by `` ... ``, in this order."""
    message = str(raised.value)
    assert len(message) < 2000
    at = 0
    for part in text.split(" ... "):
        at = message.find(part, at)
        assert at >= 0, f"{part!r} is missing, or in another place, in: {message}"
        at += len(part)


def picture(pool: slabpool.Pool) -> tuple[slabpool.Stats, list[slabpool.RequestRecord]]:
    """Everything visible of a pool that a refused call must not change."""
    stats = pool.stats()._replace(exhaustions=0, fragmented=0, metadata=0)
    return stats, [record._replace(age=0.0) for record in pool.requests()]


def refused(scene: Scene, call: Callable[[Scene], object], error: type[Exception], text: str) -> None:
    """The call raises exactly this error with this text, and changes nothing."""
    scene.pool.trim()  # what goes back as time passes is not the call's doing
    before = picture(scene.pool)
    with pytest.raises(error) as raised:
        call(scene)
    assert type(raised.value) is error
    says(raised, text)
    del raised
    assert picture(scene.pool) == before
    assert (scene.array == 7).all()
    assert scene.pool._verify() is None
