"""Ctrl-C interrupts a program that waits for a pool, just as one that waits for a lock."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

CALLS = [
    "req.wait()",
    "req.wait(600)",
    "pool.empty(1 << 20, 'u1', timeout=600)",
    "req.empty(1 << 20, 'u1', timeout=600)",
    "pool.request('s', reserve='1MiB', timeout=600)",
]


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_ends_the_wait(call: str) -> None:
    code = f"""
        import os, signal, slabpool, threading
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent process may ignore it
        pool = slabpool.Pool("1MiB")
        req = pool.request("r", ["gpu0"])
        held = pool.empty(512 << 10, "u1")
        before = pool.stats()
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        try:
            {call}
        except KeyboardInterrupt:
            assert pool.stats() == before, pool.stats()
            assert pool._verify() is None
            req.cancel()
            print("interrupted")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=10
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
