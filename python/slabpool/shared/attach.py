"""Attaching as a device of a pool that another process owns, and detecting that the owner is gone.

A thread for each peer sleeps until the connection closes. Invariant: the connection is open exactly as long
as this process is the device.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from slabpool._core.shared import Peer, new_peer
from slabpool.arguments.names import MOST_BITS, plain_name
from slabpool.arguments.seconds import seconds
from slabpool.arguments.texts import show, show_typed
from slabpool.errors import (
    AttachError,
    DeviceAttachedError,
    InvalidArgumentError,
    InvalidTypeError,
    OwnerLostError,
)
from slabpool.messages.system import system_refused
from slabpool.shared import foreign, forks, wire
from slabpool.shared.rendezvous import connect

if TYPE_CHECKING:
    from slabpool._core.shared import Maps

_PATIENCE = 30.0  # seconds that a live owner may take to answer
_LONGEST = 1e9  # seconds of a timeout; beyond 292 years the system's calls refuse it
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)


def _ask(
    line: socket.socket, name: str, question: dict[str, Any], without: str
) -> tuple[dict[str, Any] | None, list[int]]:
    """The owner's answer and its descriptors; None if the connection has closed.

    Raises `AttachError` if the owner does not answer in time, and `SystemRefusedError`, which says `without`,
    if this process has no room for the descriptors.
    """
    try:
        wire.send(line, question)
        return wire.receive(line)
    except TimeoutError as error:
        raise AttachError(
            f"{without}: the owner of pool {name!r} does not answer; is its process stopped?"
        ) from error
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise system_refused(without, errno.EMFILE) from error
        return None, []


class Connection:
    """A peer's connection to the owner, and the thread that waits for its end."""

    def __init__(self, line: socket.socket, maps: Maps, name: str) -> None:
        self._line = line
        self._name = name
        self._asking = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(maps,), name="slabpool-peer", daemon=True)
        foreign.start(self._thread)

    def _watch(self, maps: Maps) -> None:
        poll = select.poll()
        poll.register(self._line, _GONE)
        while not poll.poll():
            pass
        maps.lose()
        self._ended.set()

    def wait(self, timeout: float | None) -> bool:
        """Whether the connection closed within so many seconds."""
        return self._ended.wait(timeout)

    def writable_file(self) -> int:
        """A descriptor for a writable map of the pool's memory, which the caller closes."""
        with self._asking:
            message, files = _ask(
                self._line,
                self._name,
                {"writable": True},
                f"pool {self._name!r} cannot be mapped for writing",
            )
        if message is None or len(files) != 1:
            wire.close(files)
            raise OwnerLostError(
                f"the owner of pool {self._name!r} is gone, so the pool cannot be mapped for writing"
            )
        return files[0]

    def close(self) -> None:
        """Closes the connection. The device then holds nothing."""
        with contextlib.suppress(OSError):  # it is closed already
            self._line.shutdown(socket.SHUT_RDWR)
        # When the interpreter ends, daemon threads no longer run, and waiting for one would never return.
        if threading.current_thread() is not self._thread and not sys.is_finalizing():
            self._thread.join()
        forks.release(self._line)


def attach(name: str, device: str | int, *, timeout: float | None = None) -> Peer:
    """Attaches this process as a device of a shared pool of another process.

    Parameters
    ----------
    name : str
        Name of the pool, which its owner made with ``memory="shared"``.
    device : str or int
        As the owner names it in ``devices=``. One live process at a time can be a device.
    timeout : float, optional
        Seconds to wait until the pool exists and no other process is the device. By default either is an
        error at once.

    Returns
    -------
    Peer

    Raises
    ------
    AttachError
        There is no such pool, it belongs to another user, or it is of another version of slabpool.
    DeviceAttachedError
        Another live process is the device.
    SystemRefusedError
        The system refuses what this process needs for it, such as a descriptor.

    Examples
    --------
    >>> import slabpool
    >>> with slabpool.Pool("1MiB", memory="shared", name="doc-attach") as pool:
    ...     with slabpool.attach("doc-attach", device="gpu0") as peer:
    ...         peer.device, peer.lost
    ('gpu0', False)
    """
    if not isinstance(name, str):
        raise InvalidTypeError(f"name must be a str, got {show_typed(name)}")
    name, device = plain_name(name), plain_name(device)
    if not isinstance(device, (str, int)) or isinstance(device, bool):
        raise InvalidTypeError(f"device must be a str or an int, got {show_typed(device)}")
    if isinstance(device, int) and device.bit_length() > MOST_BITS:
        raise InvalidArgumentError(f"device must be an int of at most {MOST_BITS} bits, got {show(device)}")
    deadline = time.monotonic() + _seconds(timeout)
    pause = 0.001
    while True:
        try:
            return _attach(name, device, deadline if timeout is not None else None)
        except (AttachError, DeviceAttachedError):
            # Nothing can be waited for here: there is no owner, or the owner does not report the end of the
            # other process.
            if time.monotonic() + pause >= deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _seconds(timeout: object) -> float:
    return 0.0 if timeout is None else min(seconds(timeout, "timeout", " or None"), _LONGEST)


def _attach(name: str, device: str | int, deadline: float | None) -> Peer:
    line = connect(name, _PATIENCE if deadline is None else max(deadline - time.monotonic(), 0.001))
    files: list[int] = []
    try:
        message, files = _ask(
            line,
            name,
            {"attach": device, "version": wire.VERSION},
            f"this process cannot receive the files of pool {name!r}",
        )
        if message is None:
            raise AttachError(f"the owner of pool {name!r} ended the connection; it may be closing")
        _raise_refusal(name, device, message)
        if len(files) != 5 or message.get("number") not in range(4096):
            raise AttachError(f"the answer of the owner of pool {name!r} is not one of slabpool: {message!r}")
        line.settimeout(_PATIENCE)
        return new_peer(name, device, message["number"], files, lambda maps: Connection(line, maps, name))
    except BaseException:
        forks.release(line)
        raise
    finally:
        for fd in files:
            os.close(fd)


def _raise_refusal(name: str, device: str | int, message: dict[str, object]) -> None:
    error = message.get("error")
    if error == "attached":
        pid = message.get("pid")
        holder = f"process {pid}" if pid else "a process in another PID namespace than the owner's"
        raise DeviceAttachedError(
            f"device {device!r} of pool {name!r} is attached already, as {holder}; one process at a time can "
            "be a device. End that process, or close its peer"
        )
    if error == "version":
        raise AttachError(
            f"the owner of pool {name!r} has protocol version {message.get('owner')} and this process "
            f"{wire.VERSION}; install the same slabpool in both"
        )
    if error is not None:
        raise AttachError(f"the owner of pool {name!r} refuses device {device!r}: {message.get('text')}")
