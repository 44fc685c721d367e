"""The messages between nodes about runs, inside the messages of exo.

A *run* is one prompt on its way round the ring. The node where the prompt enters gives it a unique name, so
it can be distinguished from other prompts with the same ``request_id``. The name travels as a tag on the
request id that exo passes on. (exo's own field for extra state cannot be used: its gRPC peer on Linux fails
if the field is not empty.)

Invariant: every node removes the tag before exo's code sees the id, so all of exo's entries are under plain
ids.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from slabpool.arguments.reading import UnreadableError, read_json

_SEPARATOR = "\x1f"  # a control character, which does not occur in ids of users or uuid4()
_LONGEST = 1 << 16  # characters of a tag or a message
_TYPE = "slabpool"  # type of our opaque status messages; exo's own observers ignore unknown types


class Tag(NamedTuple):
    """What a node needs to know to take part in a run."""

    #: Name of the run, unique among all nodes.
    run: str
    #: The node where the prompt entered.
    entry: str
    #: All nodes that work on the run, in the order of their layers.
    ring: tuple[str, ...]
    #: Whether the receiver has not yet worked on the run. If it is false and the receiver does not know the
    #: run, the run is over and the tensor is late.
    fresh: bool


def tagged(request_id: str, tag: Tag) -> str:
    """Append a tag to a request id."""
    return request_id + _SEPARATOR + json.dumps(tag)


def untagged(request_id: str) -> tuple[str, Tag | None]:
    """Split a request id into the plain id and the tag. What cannot be read as a tag is part of the id."""
    plain, separator, text = request_id.rpartition(_SEPARATOR)
    if not separator:
        return request_id, None
    try:
        fields = read_json(text, longest=_LONGEST, deepest=2)
    except UnreadableError:
        return request_id, None
    if not isinstance(fields, list) or len(fields) != 4 or not isinstance(fields[2], list):
        return request_id, None
    run, entry, ring, fresh = fields
    if not all(isinstance(name, str) for name in (run, entry, *ring)) or not isinstance(fresh, bool):
        return request_id, None
    return plain, Tag(run, entry, tuple(ring), fresh)


class Message(NamedTuple):
    """A message from one node to another about a run."""

    sender: str
    run: str
    #: True: the run is over. False: a question whether the run is still alive.
    over: bool
    #: Whether this is the sender's ack: it will not use the run again.
    done: bool
    #: Whether the sender waits for the receiver's ack.
    waits: bool
    #: Why the run is over.
    reason: str

    def to_status(self) -> str:
        """Encode the message as an opaque status of exo."""
        return json.dumps({"type": _TYPE, **self._asdict()})


_FIELDS = {"sender": str, "run": str, "over": bool, "done": bool, "waits": bool, "reason": str}


def parse(status: str) -> Message | None:
    """Decode an opaque status; return None if it is not one of ours."""
    if f'"{_TYPE}"' not in status:  # checked before parsing, because some of exo's statuses are long
        return None
    try:
        fields = read_json(status, longest=_LONGEST, deepest=1)
    except UnreadableError:
        return None
    if not isinstance(fields, dict) or fields.pop("type", None) != _TYPE:
        return None
    if {name: type(value) for name, value in fields.items()} != _FIELDS:
        return None
    return Message(**fields)
