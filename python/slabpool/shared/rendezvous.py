"""Names of shared pools: a Unix socket for each, in a directory that only this user can access.

Each name has a socket and a lock file. The owner holds the lock, and the kernel releases it when the owner
dies. Invariants: no other user can make, see or replace a name; the name of a live owner is never taken over,
and that of a dead owner is free. A process that takes a name removes those of dead owners while it holds the
lock of the directory, so that a name which is being taken is never removed. Another process of this user may
hold that lock as long as it likes, so a process waits for it no longer than `_PATIENCE`, and holds no lock of
its own meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from slabpool.errors import (
    AttachError,
    InvalidArgumentError,
    NameInUseError,
    SlabpoolError,
    SystemRefusedError,
)
from slabpool.messages.system import system_refused
from slabpool.shared import foreign, forks

_PLAIN = re.compile(r"(?!h-)[A-Za-z0-9_][A-Za-z0-9._-]{0,39}")
_LONGEST = 107  # bytes of a socket's path
_CREDENTIALS = struct.Struct("3i")
_PATIENCE = 10.0  # seconds for which another process may hold the lock of the directory
_LONGEST_PAUSE = 0.05  # seconds between two attempts to take that lock
_ANSWER = 30.0  # seconds that an owner may take to answer
# A lease of another process on the file would otherwise make open() wait.
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


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
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:
        # It tries to make a file in each place, and reports any error as places that do not exist.
        socket.socket().close()  # raises OSError if no descriptor is free
        raise
    return Path(temporary, f"slabpool-{os.geteuid()}")


class _translated:
    """Raises `SystemRefusedError` for an error of the system, about `place` if the error names no file.

    Not a generator: Python 3.13 keeps the frames of one that raises, and with them a pool that could not be
    made, until the garbage collector runs.
    """

    def __init__(self, what: str, place: Path | None = None) -> None:
        self._what = what
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, SlabpoolError):
            place = error.filename or self._place
            raise system_refused(self._what, error.errno or errno.EIO, place) from error


def _trusted(path: Path, kind: type[AttachError | SystemRefusedError]) -> None:
    """Raises `kind` unless the directory belongs to this user and no other user can access it."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise kind(
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
        if not os.path.exists(f"/proc/self/fd/{fd}"):
            raise system_refused(f"the socket's path is longer than {_LONGEST} bytes", errno.ENOENT, path)
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[bool]:
    """Excludes other processes; False if one of them excludes this process now."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _holder(path: Path) -> str:
    """The process that holds a lock on a file, for a message; as far as the kernel says."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = os.stat(path).st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            # Number, kind, "ADVISORY", "WRITE", process, device:inode. Lines of waiters have "->" in between.
            if words[1] == "FLOCK" and int(words[5].rsplit(":", 1)[1]) == inode and int(words[4]) > 0:
                return f"process {words[4]}"
    return "a process that the kernel does not name here"


def _clear(place: Path) -> None:
    """Removes the names of dead owners."""
    for path in place.glob("*.lock"):
        with contextlib.suppress(OSError):  # the owner is alive, or has just removed it
            fd = os.open(path, os.O_RDWR | _OPEN)
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
        what = f"shared pool {name!r} cannot take its name"
        with _translated(what):
            place = directory()
        with _translated(what, place):
            with contextlib.suppress(FileExistsError):
                place.mkdir(mode=0o700)
            _trusted(place, SystemRefusedError)
        file = _file(name)
        self._socket_path = place / f"{file}.sock"
        self._lock_path = place / f"{file}.lock"
        self._pid = os.getpid()
        self._released = False
        self.listener: socket.socket | None = None
        #: Whether the kernel refuses descriptors that a peer sends.
        self.refuses_descriptors = False
        with _translated(what, self._lock_path):
            self._lock = self._take(name, place)
        try:
            with _translated(what, self._socket_path):
                self.listener = self._listen()
        except BaseException:
            self.release()
            raise

    def _take(self, name: str, place: Path) -> forks.Descriptor:
        """The lock of the name, taken while no other process takes one."""
        deadline = time.monotonic() + _PATIENCE
        pause = 0.001
        while True:
            with forks.lock, _alone(place) as alone:
                if alone:
                    _clear(place)
                    lock = forks.Descriptor(self._locked(name))
                    forks.held.add(lock)
                    return lock
            if time.monotonic() >= deadline:
                error = SystemRefusedError(
                    f"shared pool {name!r} cannot take its name: {_holder(place)} has held the lock of "
                    f"{place} for more than {_PATIENCE:g} s, and no shared pool of this user can be made "
                    "meanwhile. End that process, or set XDG_RUNTIME_DIR to another directory"
                )
                error.errno = errno.ETIMEDOUT
                raise error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _listen(self) -> socket.socket:
        with forks.lock:
            listener = socket.socket(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            forks.held.add(listener)
        try:
            self.refuses_descriptors = foreign.refuse_descriptors(listener)
            # This process has the lock, so an existing socket is that of a dead owner.
            self._socket_path.unlink(missing_ok=True)
            with _short(self._socket_path) as path:
                listener.bind(path)
            self._socket_path.chmod(0o600)
            listener.listen(128)
        except BaseException:
            forks.release(listener)
            raise
        return listener

    def _locked(self, name: str) -> int:
        while True:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
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
        """Removes the name from the directory, once: later the name may be another pool's."""
        if os.getpid() != self._pid or self._released:
            return
        self._released = True
        if self.listener is not None:
            if self.refuses_descriptors:
                forks.release(self.listener)
            else:
                foreign.close_elsewhere(
                    self.listener
                )  # connections that were not accepted may have descriptors
            with contextlib.suppress(OSError):  # it was replaced by something that is not this pool's
                self._socket_path.unlink(missing_ok=True)
        # The lock goes last, because it protects the others.
        with contextlib.suppress(OSError):
            self._lock_path.unlink(missing_ok=True)
        forks.release(self._lock)


def _connect(connection: socket.socket, path: str, timeout: float) -> None:
    """Connects; raises BlockingIOError if the queue of connections stays full."""
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        try:
            connection.connect(path)
            return
        except BlockingIOError:  # at once, whatever the socket's timeout
            if time.monotonic() + pause >= deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def connect(name: str, timeout: float = _ANSWER) -> socket.socket:
    """A connection to the owner of a name; its calls time out after so many seconds.

    Raises `AttachError` if there is no owner, or the owner is another user, and `SystemRefusedError` if the
    system refuses what the connection needs.
    """
    what = f"this process cannot reach the owner of pool {name!r}"
    with _translated(what):
        place = directory()
    path = place / f"{_file(name)}.sock"
    try:
        _trusted(place, AttachError)
        with forks.lock:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            forks.held.add(connection)
        try:
            connection.settimeout(timeout)
            with _short(path) as short:
                _connect(connection, short, timeout)
            _, uid = credentials(connection)
            if uid != os.geteuid():
                raise AttachError(
                    f"the owner of pool {name!r} is user {uid}, and this process is user {os.geteuid()}"
                )
        except BaseException:
            forks.release(connection)
            raise
    except SlabpoolError:
        raise
    except (BlockingIOError, TimeoutError) as error:  # the queue of connections is full
        raise AttachError(f"the owner of pool {name!r} does not answer; is its process stopped?") from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        found = "it is not a socket" if path.exists() and not path.is_socket() else error.strerror
        raise AttachError(
            f"there is no shared pool named {name!r} (looked for {path}: {found}). Start its "
            "owner first, or give attach() a timeout; both need the same XDG_RUNTIME_DIR or TMPDIR"
        ) from error
    except OSError as error:
        raise system_refused(what, error.errno or errno.EIO, error.filename or path) from error
    return connection
