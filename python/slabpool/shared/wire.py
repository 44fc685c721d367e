"""What owner and peer say when they meet: one small JSON text a packet, and descriptors with it.

The owner reads what anybody of the same user may have sent, so everything is checked and nothing is large.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Any

VERSION = 1
_LARGEST = 4096
_MOST_FILES = 8


def send(connection: socket.socket, message: dict[str, Any], files: tuple[int, ...] = ()) -> None:
    """Send a message, and copies of descriptors. Never waits for a full socket longer than its timeout."""
    socket.send_fds(connection, [json.dumps(message).encode()], list(files), socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A message (None: the other side is gone, or what came is no message) and the descriptors with it."""
    data, files, flags, _ = socket.recv_fds(connection, _LARGEST, _MOST_FILES, socket.MSG_CMSG_CLOEXEC)
    if data and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(data)
            if isinstance(message, dict):
                return message, list(files)
    close(files)
    return None, []


def close(files: Any) -> None:
    """Close descriptors."""
    for fd in files:
        os.close(fd)
