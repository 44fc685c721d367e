"""A Mooncake store in this process, with its own master, as its BufferPool requires.

The master listens on the loopback interface only and ends with the store.
"""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path


class Mooncake:
    """A Mooncake store with its master on the loopback interface."""

    def __init__(self, nbytes: int) -> None:
        import mooncake
        from mooncake.store import BufferPool, MooncakeDistributedStore

        port, metrics = _free_port(), _free_port()
        program = Path(mooncake.__file__).parent / "mooncake_master"
        self._master = subprocess.Popen(
            [str(program), "--rpc_address=127.0.0.1", f"--rpc_port={port}", f"--metrics_port={metrics}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for_port(port, self._master)
            self._store = MooncakeDistributedStore()
            address = f"127.0.0.1:{port}"
            status = self._store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 << 20, "tcp", "", address)
            if status != 0:
                raise RuntimeError(f"the Mooncake store does not start: {status}")
            self.pool = BufferPool(self._store, max_bytes=nbytes, min_size_class=4096, alignment=4096)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._master.kill()
        self._master.wait()

    def __del__(self) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise RuntimeError("mooncake_master does not answer")
