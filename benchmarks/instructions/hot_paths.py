"""``hot_paths.py OPERATION N``: does one operation of the Python API N times, for callgrind to count."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

import slabpool


def empty(pool: slabpool.Pool, n: int) -> None:
    for _ in range(n):
        pool.empty((2048,), np.float16)


def ack(pool: slabpool.Pool, n: int) -> None:
    # The set-up is the same for every n: one request with more devices than are ever acknowledged.
    names = [f"gpu{i}" for i in range(4000)]
    req = pool.request("chat-42", names)
    for name in names[:n]:
        req.ack(name)
    req.cancel()


def request(pool: slabpool.Pool, n: int) -> None:
    devices = ("gpu0", "gpu1", "gpu2")
    for _ in range(n):
        req = pool.request("chat-42", devices)
        req.empty((2048,), np.float16)
        req.close()
        for device in devices:
            req.ack(device)


def four_acks(pool: slabpool.Pool, n: int) -> None:
    devices = ("gpu0", "gpu1", "gpu2", "gpu3")
    for _ in range(n):
        req = pool.request("chat-42", devices)
        req.close()
        for device in devices:
            req.ack(device)


OPERATIONS: dict[str, Callable[[slabpool.Pool, int], None]] = {
    "empty": empty,
    "ack": ack,
    "request": request,
    "four_acks": four_acks,
}

if __name__ == "__main__":
    OPERATIONS[sys.argv[1]](slabpool.Pool("256MiB"), int(sys.argv[2]))
