"""Errors of the operating system in the pool's words: what was refused, why, and what to do about it."""

from __future__ import annotations

import errno
import os

from slabpool.errors import SystemRefusedError

_MEMFD = "a shared pool is made of memfd files, which it opens again through /proc"


def advice(number: int, place: object = None, *, memfd: bool = False) -> str:
    """What to do about an errno; empty if there is nothing to say.

    Parameters
    ----------
    number : int
    place : path, optional
        The file or directory that the system call named.
    memfd : bool, default False
        It is about the files of a shared pool, which have no name.
    """
    if number == errno.EMFILE:
        most = os.sysconf("SC_OPEN_MAX")
        return (
            f"this process has no free descriptor: its limit is {most} (RLIMIT_NOFILE). Raise it, or close "
            "some"
        )
    if number == errno.ENFILE:
        return "the system has no free file (sysctl fs.file-max)"
    if number == errno.ETOOMANYREFS:
        return (
            "processes of this user have sent more descriptors than were received: as many as the limit "
            f"{os.sysconf('SC_OPEN_MAX')} (RLIMIT_NOFILE) allows. Raise it, or end the process that does not "
            "receive"
        )
    if memfd:
        if number in (errno.ENOENT, errno.EACCES):
            return f"{_MEMFD}; mount /proc for this process"
        if number in (errno.ENOSYS, errno.EPERM):
            return f"{_MEMFD}; a filter of system calls (seccomp) may forbid that"
    if place is None:
        return ""
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"user {os.geteuid()} must be allowed to make files there. Set XDG_RUNTIME_DIR, or TMPDIR, to a "
            "directory of this user"
        )
    if number in (errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.EADDRINUSE, errno.EEXIST):
        return "something else is in the place of a file of slabpool's; remove it"
    if number == errno.ENOENT:
        return (
            "its directory does not exist, or /proc is not mounted, which paths of more than 107 bytes need. "
            "Set XDG_RUNTIME_DIR, or TMPDIR, to a short path that exists"
        )
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the file system is full. Set XDG_RUNTIME_DIR, or TMPDIR, to a directory on another one"
    if number == errno.ENAMETOOLONG:
        return "set XDG_RUNTIME_DIR, or TMPDIR, to a shorter path"
    return ""


def system_refused(
    what: str, number: int, place: object = None, *, memfd: bool = False
) -> SystemRefusedError:
    """The error for a system call that failed with an errno; `what` could not be done."""
    at = "" if place is None else f" ({place})"
    more = advice(number, place, memfd=memfd)
    error = SystemRefusedError(f"{what}{at}: {os.strerror(number)}{'; ' + more if more else ''}")
    error.errno = number
    return error


def not_loaded(cause: ImportError | OSError | MemoryError) -> SystemRefusedError:
    """The error for a part of slabpool that cannot be loaded on its first use."""
    number = errno.ENOMEM if isinstance(cause, MemoryError) else getattr(cause, "errno", None)
    if number is None and os.strerror(errno.EMFILE) in str(cause):  # from the loader of shared objects
        number = errno.EMFILE
    what = "the part of slabpool that serves shared pools cannot be loaded"
    return SystemRefusedError(f"{what}: {cause}") if number is None else system_refused(what, number)
