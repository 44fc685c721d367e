"""A process that ends while its peer is attached ends at once, with every Python."""

from __future__ import annotations

import subprocess
import sys

import slabpool
from tests.process.devices import PATIENCE

DEVICE = """
import sys, slabpool
peer = slabpool.attach("engine", device="gpu0", timeout=120)
print("attached", flush=True)
sys.stdin.readline()
"""


def test_a_process_with_an_attached_peer_ends(shared_pool: slabpool.Pool) -> None:
    request = shared_pool.request("chat-42", devices=["gpu0"])
    request.close()
    device = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", DEVICE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert device.stdin is not None
        assert device.stdout is not None
        assert device.stdout.readline() == "attached\n"
        device.stdin.close()
        assert device.wait(PATIENCE) == 0
    finally:
        device.kill()
        device.wait()
        device.stdout.close()
    assert request.wait(timeout=PATIENCE), "its death releases what it held"
