"""The kinds of memory a pool can be made of, as text: ``memory="cuda:0"``.

Only the syntax. Whether this machine has such memory is known when the pool is made.
"""

import re
from typing import NamedTuple

from slabpool.arguments.texts import show
from slabpool.errors import InvalidArgumentError

_NUMBER = "(0|[1-9][0-9]{0,2})"
_CUDA = rf"(shared:)?cuda(?::{_NUMBER})?"
_PINNED = rf"pinned(?::{_NUMBER})?"
_MANAGED = f"managed:{_NUMBER}"


class Memory(NamedTuple):
    """What a ``memory=`` argument means."""

    kind: str
    """"host", "device", "pinned" or "managed"."""
    device: int
    """Number of the CUDA device; -1 for none."""
    shared: bool
    """Whether other processes may map it."""

    def __str__(self) -> str:
        name = "cuda" if self.kind == "device" else self.kind
        if self.device >= 0:
            name += f":{self.device}"
        if self.shared:
            return "shared" if self.kind == "host" else f"shared:{name}"
        return name


def parse_memory(text: object) -> Memory:
    """What a ``memory=`` argument means.

    Parameters
    ----------
    text : str
        "host", "shared", "cuda:N" ("cuda" is "cuda:0"), "shared:cuda:N", "pinned", "pinned:N" or
        "managed:N", where N is the number of a CUDA device.

    Returns
    -------
    Memory

    Raises
    ------
    InvalidArgumentError
        Anything else.

    Examples
    --------
    >>> from slabpool.arguments.memory_kinds import parse_memory
    >>> parse_memory("cuda")
    Memory(kind='device', device=0, shared=False)
    >>> str(parse_memory("cuda")), str(parse_memory("pinned"))
    ('cuda:0', 'pinned')
    """
    if isinstance(text, str):
        if text in ("host", "shared"):
            return Memory("host", -1, text == "shared")
        if match := re.fullmatch(_CUDA, text):
            return Memory("device", int(match[2] or 0), match[1] is not None)
        if match := re.fullmatch(_PINNED, text):
            return Memory("pinned", -1 if match[1] is None else int(match[1]), False)
        if match := re.fullmatch(_MANAGED, text):
            return Memory("managed", int(match[1]), False)
    raise InvalidArgumentError(
        "memory must be 'host', 'shared', 'cuda:N', 'shared:cuda:N', 'pinned', 'pinned:N' or 'managed:N', "
        f"where N is the number of a CUDA device such as 0; got {show(text)}"
    )
