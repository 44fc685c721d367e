"""The owner's thread: lets peers attach, and detects within milliseconds that one is gone.

It sleeps until a peer connects, asks or dies; acks do not use the connection. Invariants: an attached device
is one live process, whose connection is open; when the process dies or the connection closes, the device
releases everything that it holds, once. The thread keeps the pool's core alive, and not the `Pool`; it ends
when the pool is closed or dropped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slabpool._core.pool import Link
from slabpool.errors import AttachError, DeviceAttachedError, SlabpoolError
from slabpool.shared import forks, wire
from slabpool.shared.rendezvous import Claim, credentials

if TYPE_CHECKING:
    from slabpool._core.pool import Pool

# Most connections that have not attached as a device; beyond that the oldest is dropped.
_STRANGERS = 64
# Milliseconds for which no connection is accepted after the process ran out of descriptors.
_PAUSE = 100
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)


@dataclass(eq=False)
class _Client:
    """A connection, and the device it is attached as."""

    connection: socket.socket
    pid: int
    process: forks.Descriptor | None  # readable once the process has ended
    device: str | int | None = None
    number: int = -1
    lost: int = 0  # requests that it held when it was dropped
    gone: threading.Event = field(default_factory=threading.Event)


class Service:
    """Serves the peers of one pool until `stop`."""

    def __init__(self, pool: Pool) -> None:
        self._name = pool.name
        self._link = Link(pool)
        self._pid = os.getpid()
        self._mutex = threading.Lock()  # guards _clients and _attached
        self._clients: dict[int, _Client] = {}  # by descriptor
        self._attached: dict[str | int, _Client] = {}
        self._stopped = False
        self._crowded = False  # the process ran out of descriptors: no connection is accepted during a pause
        self._claim = Claim(pool.name)
        with forks.lock:
            self._alarm, self._ring = socket.socketpair()
            forks.held.update((self._alarm, self._ring))
        self._poll = select.poll()
        self._poll.register(self._alarm, select.POLLIN)
        self._poll.register(self._claim.listener, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name=f"slabpool-{pool.name}", daemon=True)
        self._thread.start()

    # ---- for the pool

    def stop(self) -> None:
        """Closes the pool for all peers, and removes its name. Calling it again does nothing."""
        if os.getpid() != self._pid or self._stopped:
            return
        self._stopped = True
        self._link.dismiss()
        self._ring.send(b"x")
        # The garbage collector may drop the pool on any thread.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def device_lost(self, device: str | int, kill: bool) -> int | None:
        """Requests that an attached device held, once its process is dead; None if it is not attached."""
        with self._mutex:  # the descriptors of an attached client are open
            client = self._attached.get(device)
            gone = client is not None and self._is_gone(client)
        if client is None:
            return None
        if gone:  # the thread is about to drop it
            client.gone.wait()
            return client.lost
        if not kill:
            raise DeviceAttachedError(
                f"device {device!r} is attached to pool {self._name!r} as process {client.pid}, which is "
                "alive and may be using its memory; pass kill=True to end that process, or close its peer "
                "there"
            )
        if client.pid == os.getpid():
            raise DeviceAttachedError(
                f"device {device!r} is attached to pool {self._name!r} in this process; close its peer "
                "instead of killing it"
            )
        with contextlib.suppress(ProcessLookupError):
            if client.process is not None:
                # By the descriptor, because another process may have the number by now.
                signal.pidfd_send_signal(client.process.fileno(), signal.SIGKILL)
            else:
                os.kill(client.pid, signal.SIGKILL)
        client.gone.wait()
        return client.lost

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._stopped:
                heard = self._poll.poll(_PAUSE if self._crowded else None)
                if self._crowded:
                    self._crowded = False
                    self._poll.register(self._claim.listener, select.POLLIN)
                for fd, events in heard:
                    if fd == self._alarm.fileno():
                        break
                    if fd == self._claim.listener.fileno():
                        self._accept()
                    else:
                        self._hear(fd, events)
        finally:
            for client in set(self._clients.values()):
                self._drop(client)
            self._claim.release()
            forks.release(self._alarm)
            forks.release(self._ring)

    def _accept(self) -> None:
        with forks.lock:
            try:
                connection, _ = self._claim.listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    # It stays in the queue and the listener stays readable, so pause.
                    self._poll.unregister(self._claim.listener)
                    self._crowded = True
                return  # otherwise the connection was closed again
            forks.held.add(connection)
        connection.setblocking(False)
        pid, uid = credentials(connection)
        if uid != os.geteuid():
            forks.release(connection)
            return
        process = None
        with forks.lock, contextlib.suppress(OSError, AttributeError):
            process = forks.Descriptor(os.pidfd_open(pid))
            forks.held.add(process)
        client = _Client(connection, pid, process)
        with self._mutex:
            strangers = [c for fd, c in self._clients.items() if c.number < 0 and fd == c.connection.fileno()]
            self._clients[connection.fileno()] = client
            if process is not None:
                self._clients[process.fileno()] = client
        self._poll.register(connection, select.POLLIN | _GONE)
        if process is not None:
            self._poll.register(process, select.POLLIN)
        if len(strangers) >= _STRANGERS:
            self._drop(strangers[0])

    def _hear(self, fd: int, events: int) -> None:
        client = self._clients.get(fd)
        if client is None:  # dropped while an earlier event was handled
            return
        if fd != client.connection.fileno() or not events & select.POLLIN:
            self._drop(client)
            return
        try:
            message, files = wire.receive(client.connection)
            wire.close(files)  # no request has any
            if message is None or not self._answer(client, message):
                self._drop(client)
        except OSError:  # it is gone, or does not read answers
            self._drop(client)

    def _answer(self, client: _Client, message: dict[str, object]) -> bool:
        """Answers a message. False for a message that no peer sends."""
        device = message.get("attach")
        if client.number < 0:
            if message.get("version") != wire.VERSION:
                wire.send(client.connection, {"error": "version", "owner": wire.VERSION})
                return False
            if not isinstance(device, (str, int)) or isinstance(device, bool):
                return False
            return self._attach(client, device)
        if message.get("writable") is True:
            wire.send(client.connection, {}, (self._link.writable_data(),))
            return True
        return False

    def _attach(self, client: _Client, device: str | int) -> bool:
        with self._mutex:
            holder = self._attached.get(device)
        if holder is not None and self._is_gone(holder):
            self._drop(holder)
        try:
            number, files = self._link.attach(device)
        except FileExistsError:
            assert holder is not None
            wire.send(client.connection, {"error": "attached", "pid": holder.pid})
            return False
        except (AttachError, SlabpoolError) as error:
            wire.send(client.connection, {"error": "refused", "text": str(error)})
            return False
        with self._mutex:
            client.device, client.number = device, number
            self._attached[device] = client
        wire.send(client.connection, {"number": number}, files)
        return True

    def _is_gone(self, client: _Client) -> bool:
        """Whether the client's process or connection has ended, even if this thread has not handled that."""
        look = select.poll()
        look.register(client.connection, _GONE)
        if client.process is not None:
            look.register(client.process, select.POLLIN)
        return bool(look.poll(0))

    def _drop(self, client: _Client) -> None:
        """Drops a connection; its device releases everything that it holds."""
        with self._mutex:
            for thing in (client.connection, client.process):
                if thing is not None and self._clients.pop(thing.fileno(), None) is not None:
                    self._poll.unregister(thing)
            attached = client.device is not None and self._attached.get(client.device) is client
            if attached:
                assert client.device is not None
                del self._attached[client.device]
        if attached:
            client.lost = self._link.detach(client.number)
        forks.release(client.connection)
        if client.process is not None:
            forks.release(client.process)
        client.gone.set()


def serve(pool: Pool) -> Service:
    """Serves the peers of a pool until it is closed or dropped, or the interpreter exits."""
    service = Service(pool)
    weakref.finalize(pool, service.stop)
    return service
