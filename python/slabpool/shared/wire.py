"""Messages between owner and peer: one small JSON text in each packet, with descriptors.

Any process of the same user can send to the owner, so every message is checked and its size is limited.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from typing import Any

from slabpool.arguments.reading import DIGITS_OF_NAMES, UnreadableError, read_json
from slabpool.errors import InvalidArgumentError

VERSION = 1
_LARGEST = 4096
_MOST_FILES = 8


def send(connection: socket.socket, message: dict[str, Any], files: tuple[int, ...] = ()) -> None:
    """Sends a message with copies of descriptors. Waits for a full socket no longer than its timeout."""
    data = json.dumps(message).encode()
    if len(data) > _LARGEST:
        raise InvalidArgumentError(f"the device's name is too long for another process: {len(data)} bytes")
    socket.send_fds(connection, [data], list(files), socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A message of the owner and its descriptors. None if the owner is gone, or sent no message.

    Raises OSError (EMFILE) if this process has no room for the descriptors.
    """
    data, files, flags, _ = socket.recv_fds(connection, _LARGEST, _MOST_FILES, socket.MSG_CMSG_CLOEXEC)
    if flags & socket.MSG_CTRUNC:
        close(files)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    message = _parsed(data, flags)
    if message is None:
        close(files)
        return None, []
    return message, list(files)


def receive_alone(connection: socket.socket) -> dict[str, Any] | None:
    """A message of a peer, which has no descriptors. None if the peer is gone, or sent no message."""
    data, _, flags, _ = connection.recvmsg(_LARGEST)
    return _parsed(data, flags)


def _parsed(data: bytes, flags: int) -> dict[str, Any] | None:
    if data and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        with contextlib.suppress(UnreadableError):
            message = read_json(data, longest=_LARGEST, deepest=4, digits=DIGITS_OF_NAMES)
            if isinstance(message, dict):
                return message
    return None


def close(files: Any) -> None:
    """Closes descriptors."""
    for fd in files:
        os.close(fd)
