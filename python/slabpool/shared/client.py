"""A connection to the owner of a shared pool, and which process is at its other end.

A process is named by a pidfd, never by its number: the number may be another process's by then, and is 0
for a process of another PID namespace.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass, field

from slabpool.shared import foreign, forks

# Seconds for which the memory maps of a process are waited for.
_PATIENCE = 30.0
# The option of a socket that gives a pidfd of the process which connected; Linux 6.5 and later.
_SO_PEERPIDFD = 77


@dataclass(eq=False)
class Client:
    """A connection, and the device it is attached as."""

    connection: socket.socket
    pid: int
    process: forks.Descriptor | None  # a pidfd, readable once the process has ended
    certain: bool  # the kernel gave the pidfd for this connection; otherwise it was opened by number
    device: str | int | None = None
    number: int = -1
    board: tuple[int, int] = (0, 0)  # file system and inode of its acks, which the process maps
    lost: int = 0  # requests that it held when it was dropped
    gone: threading.Event = field(default_factory=threading.Event)


def named(client: Client) -> str:
    """The client's process, for a message."""
    return f"process {client.pid}" if client.pid > 0 else "a process in another PID namespace"


def process_of(connection: socket.socket, pid: int) -> tuple[forks.Descriptor | None, bool]:
    """A pidfd of the process that connected, and whether the kernel gave it for this connection.

    It is None if there is none: the kernel is old, or the process has no number here, or this one has no free
    descriptor. Raises ProcessLookupError if the process has ended.
    """
    with forks.lock:
        certain = True
        try:
            fd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except ProcessLookupError:
            raise
        except OSError:  # before Linux 6.5
            if pid <= 0:
                return None, False
            certain = False
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                raise
            except (OSError, AttributeError):  # before Linux 5.3
                return None, False
        process = forks.Descriptor(fd)
        forks.held.add(process)
    return process, certain


def unnamed(client: Client) -> str | None:
    """Why no process is known for certain to be the client's; None if its pidfd is."""
    if client.process is None:
        if client.pid == 0:
            return "it is in another PID namespace"
        return (
            f"there is no pidfd of it, and its number {client.pid} may be another process's by now, or of "
            "another PID namespace"
        )
    try:
        same = client.certain or foreign.within(_PATIENCE, lambda: _maps_board(client))
    except TimeoutError:
        return f"the memory maps of process {client.pid} could not be read within {_PATIENCE:g} s"
    if not same:
        return (
            f"process {client.pid} of this PID namespace does not map the device's memory, so it may be "
            "another one"
        )
    return None


def _maps_board(client: Client) -> bool:
    """Whether the process with the client's number maps the client's board.

    If it does not, the device's process ended before its pidfd was opened by number, and another process has
    the number. If it does, and the pidfd's process is alive after this, both are the same process.
    """
    device, inode = client.board
    wanted = [f"{os.major(device):02x}:{os.minor(device):02x}", str(inode)]
    try:
        with open(f"/proc/{client.pid}/maps", encoding="utf-8", errors="replace") as maps:
            return any(line.split(maxsplit=5)[3:5] == wanted for line in maps)
    except OSError:
        return False
