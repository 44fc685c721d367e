"""What nodes tell each other about runs, over the messages that exo has.

A *run* is one prompt on its way round the ring: its own name, made by the node that it came in at, tells it
from every other prompt of the same ``request_id``. The name travels as a tag on the id that exo passes along
(exo's own place for extra state cannot be sent on Linux: its gRPC handle fails on anything in it). What must
stay true: every node takes the tag off before exo's code sees the id, so that all exo keeps is by plain ids.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

_SEPARATOR = "\x1f"  # a control character: not in ids that people or uuid4() make
_TYPE = "slabpool"  # the opaque status of ours; exo's own observers look at the type and pass over others


class Tag(NamedTuple):
    """What a node must know to take part in a run."""

    #: Name of the run, unique among all nodes.
    run: str
    #: The node that the prompt came in at.
    entry: str
    #: All nodes that work on it, in the order of their layers.
    ring: tuple[str, ...]
    #: Whether the receiver has not worked on it before. A tensor of a run that a node has forgotten, and that
    #: is not fresh, is late: the run is over.
    fresh: bool


def tagged(request_id: str, tag: Tag) -> str:
    """The id to send in place of `request_id`."""
    return request_id + _SEPARATOR + json.dumps(tag)


def untagged(request_id: str) -> tuple[str, Tag | None]:
    """The plain id, and the tag if there is one."""
    plain, separator, text = request_id.rpartition(_SEPARATOR)
    if not separator:
        return request_id, None
    run, entry, ring, fresh = json.loads(text)
    return plain, Tag(run, entry, tuple(ring), fresh)


class Message(NamedTuple):
    """One node's word to another about a run."""

    sender: str
    run: str
    #: False: is this run still alive? (To the node that it came in at.)
    over: bool
    #: The sender will not touch the run again: its ack.
    done: bool
    #: The sender waits for the receiver's ack.
    waits: bool
    #: Why the run is over.
    reason: str

    def to_status(self) -> str:
        """As an opaque status of exo."""
        return json.dumps({"type": _TYPE, **self._asdict()})


def parse(status: str) -> Message | None:
    """The message in an opaque status, or None if it is one of exo's own."""
    if f'"{_TYPE}"' not in status:  # most are not: exo sends two for each prompt, some with long texts
        return None
    fields: dict[str, Any] = json.loads(status)
    if fields.pop("type", None) != _TYPE:
        return None
    return Message(**fields)
