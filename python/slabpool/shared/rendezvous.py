"""Names of shared pools: a Unix socket for each, in a directory that only this user can access.

Each name has a socket and a lock file. The owner holds the lock, and the kernel releases it when the owner
dies. Invariants: no other user can make, see or replace a name; the name of a live owner is never taken over,
and that of a dead owner is free. A process that takes a name removes those of dead owners while it holds the
lock of the directory, so that a name which is being taken is never removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slabpool.errors import AttachError, InvalidArgumentError, NameInUseError
from slabpool.shared import forks

_PLAIN = re.compile(r"(?!h-)[A-Za-z0-9_][A-Za-z0-9._-]{0,39}")
_LONGEST = 107  # bytes of a socket's path
_CREDENTIALS = struct.Struct("3i")


def directory() -> Path:
    """The directory of the names: in ``$XDG_RUNTIME_DIR``, otherwise in the directory for temporary files.

    Examples
    --------
    >>> from slabpool.shared.rendezvous import directory
    >>> directory().name.startswith("slabpool")
    True
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.isabs(runtime) and os.access(runtime, os.W_OK):
        return Path(runtime, "slabpool")
    return Path(tempfile.gettempdir(), f"slabpool-{os.geteuid()}")


def _trusted(path: Path) -> None:
    """Raises unless the directory belongs to this user and no other user can access it."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise AttachError(
            f"{path} must be a directory of user {os.geteuid()} with mode 0700; it is "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}. Remove it, or set XDG_RUNTIME_DIR to a "
            "directory of this user"
        )


def _file(name: str) -> str:
    # Long names, and names with other than plain characters, become a hash.
    return (
        name
        if _PLAIN.fullmatch(name)
        else "h-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    )


def credentials(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a connection, as the kernel reports them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """The path of a socket; if it is too long, through a descriptor of its directory."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Excludes other processes."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _clear(place: Path) -> None:
    """Removes the names of dead owners."""
    for path in place.glob("*.lock"):
        with contextlib.suppress(OSError):  # the owner is alive, or has just removed it
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.with_suffix(".sock").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            finally:
                os.close(fd)


class Claim:
    """A name that this process owns until `release`: a locked file and a listening socket."""

    def __init__(self, name: str) -> None:
        if not name:
            raise InvalidArgumentError("name must not be empty for a shared pool: peers attach by it")
        place = directory()
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o700)
        _trusted(place)
        file = _file(name)
        self._socket_path = place / f"{file}.sock"
        self._lock_path = place / f"{file}.lock"
        self._pid = os.getpid()
        with forks.lock:
            with _alone(place):
                _clear(place)
                self._lock = forks.Descriptor(self._locked(name))
            forks.held.add(self._lock)
            self.listener = socket.socket(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            forks.held.add(self.listener)
        try:
            # This process has the lock, so an existing socket is that of a dead owner.
            self._socket_path.unlink(missing_ok=True)
            with _short(self._socket_path) as path:
                self.listener.bind(path)
            self._socket_path.chmod(0o600)
            self.listener.listen(128)
        except BaseException:
            self.release()
            raise

    def _locked(self, name: str) -> int:
        while True:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another process may have removed the file after it was opened and before it was locked.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), os.stat(self._lock_path, follow_symlinks=False)):
                        return fd
            except BlockingIOError:
                os.close(fd)
                raise NameInUseError(
                    f"a shared pool named {name!r} exists already; close it, or give this one another name"
                ) from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def release(self) -> None:
        """Removes the name from the directory."""
        if os.getpid() != self._pid:
            return
        forks.release(self.listener)
        # The lock goes last, because it protects the others.
        self._socket_path.unlink(missing_ok=True)
        self._lock_path.unlink(missing_ok=True)
        forks.release(self._lock)


def connect(name: str, timeout: float | None = None) -> socket.socket:
    """A connection to the owner of a name; its calls time out after so many seconds.

    Raises `AttachError` if there is no owner, or the owner is another user.
    """
    place = directory()
    path = place / f"{_file(name)}.sock"
    try:
        _trusted(place)
        with forks.lock:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            forks.held.add(connection)
        try:
            connection.settimeout(timeout)
            with _short(path) as short:
                connection.connect(short)
            _, uid = credentials(connection)
            if uid != os.geteuid():
                raise AttachError(
                    f"the owner of pool {name!r} is user {uid}, and this process is user {os.geteuid()}"
                )
        except BaseException:
            forks.release(connection)
            raise
    except (BlockingIOError, TimeoutError):  # the queue of connections is full
        raise AttachError(f"the owner of pool {name!r} does not answer; is its process stopped?") from None
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise AttachError(
            f"there is no shared pool named {name!r} (looked for {path}: {error.strerror}). Start its "
            "owner first, or give attach() a timeout; both need the same XDG_RUNTIME_DIR or TMPDIR"
        ) from None
    return connection
