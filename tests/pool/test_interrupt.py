"""Ctrl-C interrupts a program that waits for a pool, just as one that waits for a lock."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.conftest import ROOT
from tests.waiting import PATIENCE

CALLS = [
    "req.wait()",
    "req.wait(600)",
    "pool.empty(1 << 20, 'u1', timeout=600)",
    "req.empty(1 << 20, 'u1', timeout=600)",
    "pool.request('s', reserve='1MiB', timeout=600)",
    "pool.on_pressure(0.9, print).wait(600)",
    "pool.on_pressure(0.9, print).serve()",
]


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_ends_the_wait(call: str) -> None:
    code = f"""
        import os, signal, slabpool, threading
        from tests.waiting import once, waits
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent process may ignore it
        pool = slabpool.Pool("1MiB")
        req = pool.request("r", ["gpu0"])
        held = pool.empty(512 << 10, "u1")
        pool.trim()
        before = pool.stats()
        once(waits(threading.get_ident()), lambda: os.kill(os.getpid(), signal.SIGINT))
        try:
            {call}
        except KeyboardInterrupt:
            assert pool.stats() == before, pool.stats()
            assert pool._verify() is None
            req.cancel()
            print("interrupted")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,  # whose tests it imports
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
