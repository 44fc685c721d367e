"""The owner's thread: lets peers attach, and detects within milliseconds that one is gone.

It sleeps until a peer connects, asks or dies; acks do not use the connection. Invariants: an attached device
is one live process, whose connection is open; when the process dies or the connection closes, the device
releases everything that it holds, once. A process is signalled by its pidfd, never by its number, because the
number may be another process's by then, and is 0 for a process of another PID namespace. The thread waits for
nothing but its poll: what a peer sends cannot stop it.

The thread keeps the pool's core alive, and not the `Pool`. When the pool is closed by force it goes on until
the last peer that holds something has let go; peers find the pool closed meanwhile. When the pool is dropped
or the interpreter exits it ends at once, and what attached peers hold stays as it was, as after `kill -9`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import select
import signal
import socket
import sys
import threading
import weakref
from typing import TYPE_CHECKING

from slabpool._core.pool import Link
from slabpool.arguments.texts import short
from slabpool.errors import DeviceAttachedError, SlabpoolError
from slabpool.messages.system import advice, system_refused
from slabpool.shared import foreign, forks, wire
from slabpool.shared.client import Client, named, process_of, unnamed
from slabpool.shared.rendezvous import Claim, credentials

if TYPE_CHECKING:
    from slabpool._core.pool import Pool

# Most connections that have not attached as a device; beyond that the oldest is dropped.
_STRANGERS = 64
# Milliseconds for which no connection is accepted after the process ran out of descriptors.
_PAUSE = 100
# Seconds that a process may take to end once it is killed, and this file's thread to detach a dead one.
_PATIENCE = 30.0
_BOARD = 2  # place of the device's acks among the files that a peer gets
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)


class Service:
    """Serves the peers of one pool until `stop`."""

    def __init__(self, pool: Pool) -> None:
        self._name = pool.name
        self._link = Link(pool)
        self._pid = os.getpid()
        self._mutex = threading.Lock()  # guards _clients and _attached
        self._clients: dict[int, Client] = {}  # by descriptor
        self._attached: dict[str | int, Client] = {}
        self._closing = False  # the pool is closed
        self._ended = False  # the pool was dropped, or the interpreter exits
        self._farewell = threading.Event()  # the name is free, and only peers that hold something are left
        self._staying = False  # there are such peers
        self._crowded = False  # no connection is accepted during a pause
        self._claim = Claim(pool.name)
        assert self._claim.listener is not None
        self._listener = self._claim.listener
        try:
            with forks.lock:
                self._alarm, self._ring = socket.socketpair()
                forks.held.update((self._alarm, self._ring))
        except OSError as error:
            self._claim.release()
            raise system_refused(f"shared pool {pool.name!r} cannot serve peers", error.errno or 0) from error
        self._poll = select.poll()
        self._poll.register(self._alarm, select.POLLIN)
        self._poll.register(self._listener, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name=f"slabpool-{pool.name}", daemon=True)
        try:
            foreign.start(self._thread)
        except BaseException:
            self._claim.release()
            forks.release(self._alarm)
            forks.release(self._ring)
            raise

    # ---- for the pool

    def close(self) -> None:
        """The pool is closed: its name is free on return. Calling it again does nothing.

        A peer that holds something stays attached until it lets go.
        """
        if os.getpid() != self._pid or self._closing:
            return
        self._closing = True
        self._wake()
        # When the interpreter ends, daemon threads no longer run, and waiting for one would never return.
        if threading.current_thread() is not self._thread and not sys.is_finalizing():
            self._farewell.wait()
            if not self._staying:
                self._thread.join()

    def end(self) -> None:
        """Frees the name and ends the connections; what peers hold is not touched."""
        if os.getpid() != self._pid or self._ended:
            return
        self._ended = True
        self._wake()
        # The garbage collector may drop the pool on any thread, also on one with a lock that ending it takes.
        here = threading.current_thread() is self._thread or foreign.locked_here()
        if not here and not sys.is_finalizing():
            self._thread.join()

    def _wake(self) -> None:
        self._link.dismiss()
        with contextlib.suppress(OSError):  # the thread has ended, and closed it
            self._ring.send(b"x")

    def device_lost(self, device: str | int, kill: bool) -> int | None:
        """Requests that an attached device held, once its process is dead; None if it is not attached."""
        with self._mutex:  # the descriptors of an attached client are open
            client = self._attached.get(device)
            if client is None:
                return None
            gone = self._is_gone(client)
        if not gone:
            self._kill(device, client, kill)
        if not client.gone.wait(_PATIENCE):
            what = "has ended, but was not detached" if gone else "was killed, but has not ended"
            raise DeviceAttachedError(
                f"the process of device {device!r} of pool {self._name!r} ({named(client)}) {what} within "
                f"{_PATIENCE:g} s, and its memory is still held. It is released once the kernel has ended "
                "the process; call device_lost again to wait for that"
            )
        return client.lost

    def _kill(self, device: str | int, client: Client, allowed: bool) -> None:
        """Sends SIGKILL by the pidfd; raises if that is not allowed or not possible."""
        attached = f"device {device!r} is attached to pool {self._name!r}"
        if not allowed:
            raise DeviceAttachedError(
                f"{attached} as {named(client)}, which is alive and may be using its memory; pass kill=True "
                "to end that process, or close its peer there"
            )
        if client.pid == os.getpid():
            raise DeviceAttachedError(f"{attached} in this process; close its peer instead of killing it")
        why = unnamed(client)
        if why is None:
            with self._mutex:  # its descriptors are open, and stay so, only while it is attached
                if self._attached.get(device) is not client or self._is_gone(client):
                    return
                assert client.process is not None
                try:
                    signal.pidfd_send_signal(client.process.fileno(), signal.SIGKILL)
                    return
                except ProcessLookupError:  # it has just ended
                    return
                except OSError as error:
                    # EINVAL: the process is neither in this PID namespace nor in one below it.
                    why = (
                        "it is in another PID namespace"
                        if error.errno == errno.EINVAL
                        else f"the kernel refuses to signal it ({error.strerror})"
                    )
        raise DeviceAttachedError(
            f"{attached} by a process that cannot be named from here, so it was not killed: {why}. End that "
            "process where it runs, or close its peer there"
        )

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._ended:
                if self._closing and not self._farewell.is_set():
                    self._take_leave()
                if self._farewell.is_set() and not self._clients:
                    break
                self._listen(self._poll.poll(_PAUSE if self._crowded else None))
        finally:
            for client in set(self._clients.values()):
                self._let_go(client)
            self._claim.release()
            forks.release(self._alarm)
            forks.release(self._ring)
            self._farewell.set()

    def _listen(self, heard: list[tuple[int, int]]) -> None:
        if self._crowded:
            self._crowded = False
            self._poll.register(self._listener, select.POLLIN)
        for fd, events in heard:
            if fd == self._alarm.fileno():
                self._alarm.recv(64)
                return
            if fd == self._listener.fileno():
                self._accept()
            else:
                self._hear(fd, events)

    def _take_leave(self) -> None:
        """The pool is closed: frees the name, and drops every peer that holds nothing."""
        if not self._crowded:
            self._poll.unregister(self._listener)
        self._crowded = False
        self._claim.release()
        for client in set(self._clients.values()):
            if client.number >= 0 and self._link.holds(client.number):
                self._staying = True
                with contextlib.suppress(OSError):  # the peer has just ended
                    client.connection.shutdown(socket.SHUT_WR)  # for the peer, the end of the connection
            else:
                self._drop(client)
        self._farewell.set()

    def _pause(self) -> None:
        """Accepts nothing for a while: a connection stays in the queue, and the listener stays readable."""
        self._poll.unregister(self._listener)
        self._crowded = True

    def _accept(self) -> None:
        if foreign.crowded():
            self._pause()
            return
        with forks.lock:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._pause()
                return  # otherwise the connection was closed again
            forks.held.add(connection)
        connection.setblocking(False)
        pid, uid = credentials(connection)
        if uid != os.geteuid():
            self._close(connection)
            return
        try:
            process, certain = process_of(connection, pid)
        except ProcessLookupError:  # it has ended; a process that it forked may keep the connection open
            self._close(connection)
            return
        client = Client(connection, pid, process, certain)
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
            # No message of a peer has descriptors. They are not received, because closing one may block.
            if not self._claim.refuses_descriptors and foreign.brings_descriptors(client.connection):
                self._drop(client)
                return
            message = wire.receive_alone(client.connection)
            if self._farewell.is_set() and message is not None:
                return  # the peer has not seen yet that the pool is closed
            if message is None or not self._answer(client, message):
                self._drop(client)
        except OSError:  # it is gone, or does not read answers
            self._drop(client)

    def _answer(self, client: Client, message: dict[str, object]) -> bool:
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

    def _attach(self, client: Client, device: str | int) -> bool:
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
        except (SlabpoolError, MemoryError) as error:
            wire.send(client.connection, {"error": "refused", "text": short(str(error) or "no memory", 600)})
            return False
        found = os.fstat(files[_BOARD])
        with self._mutex:
            client.device, client.number = device, number
            client.board = (found.st_dev, found.st_ino)
            self._attached[device] = client
        try:
            wire.send(client.connection, {"number": number}, files)
        except OSError as error:
            why = advice(error.errno or 0)
            if not why:
                raise
            text = f"its files cannot be sent: {os.strerror(error.errno or 0)}; {why}"
            wire.send(client.connection, {"error": "refused", "text": text})
            return False  # which detaches the device again
        return True

    def _is_gone(self, client: Client) -> bool:
        """Whether the client's process or connection has ended, even if this thread has not handled that."""
        look = select.poll()
        look.register(client.connection, _GONE)
        if client.process is not None:
            look.register(client.process, select.POLLIN)
        return bool(look.poll(0))

    def _close(self, connection: socket.socket) -> None:
        """Closes a connection. Where the kernel does not refuse descriptors, its queue may have some."""
        if self._claim.refuses_descriptors:
            forks.release(connection)
        else:
            foreign.close_elsewhere(connection)

    def _drop(self, client: Client) -> None:
        """Drops a connection; its device releases everything that it holds."""
        if self._let_go(client):
            client.lost = self._link.detach(client.number)
        client.gone.set()

    def _let_go(self, client: Client) -> bool:
        """Closes a connection, and leaves what its device holds as it is. Whether it was attached."""
        with self._mutex:
            for thing in (client.connection, client.process):
                if thing is not None and self._clients.pop(thing.fileno(), None) is not None:
                    self._poll.unregister(thing)
            attached = client.device is not None and self._attached.get(client.device) is client
            if attached:
                assert client.device is not None
                del self._attached[client.device]
        self._close(client.connection)
        if client.process is not None:
            forks.release(client.process)
        return attached


_services: weakref.WeakSet[Service] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """The interpreter exits: the names of all pools are free."""
    for service in list(_services):
        service.end()


def serve(pool: Pool) -> Service:
    """Serves the peers of a pool until it is closed or dropped, or the interpreter exits."""
    service = Service(pool)
    _services.add(service)
    weakref.finalize(pool, service.end).atexit = False
    return service
