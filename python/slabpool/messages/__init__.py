"""Error messages: each function takes the status of a failed call and raises the exception for it.

A message names the request, the device, the bytes, the holders and the lines that opened them, and says what
to do. The core reaches these functions through `slabpool._core.hooks`, and imports none of them. They run
after failures only, so they may be slow.
"""

from slabpool.messages.cuda import cuda_failed
from slabpool.messages.peers import peer_failed, peer_unusable
from slabpool.messages.pool import (
    busy,
    call_failed,
    host_only,
    names,
    no_pool,
    unknown_device,
    warn_of_limit,
)
from slabpool.messages.requests import (
    ack_failed,
    adopt_behind,
    adopt_exceeds,
    adopt_kept,
    adopt_released,
    adopted_before,
    cancel_ambiguous,
    group_closed,
    group_failed,
    not_of_the_request,
    not_shared,
    not_the_parents,
    nothing_to_adopt,
    open_failed,
    stream_failed,
)
from slabpool.messages.system import not_loaded, system_refused

__all__ = [
    "ack_failed",
    "adopt_behind",
    "adopt_exceeds",
    "adopt_kept",
    "adopt_released",
    "adopted_before",
    "busy",
    "call_failed",
    "cancel_ambiguous",
    "cuda_failed",
    "group_closed",
    "group_failed",
    "host_only",
    "names",
    "no_pool",
    "not_loaded",
    "not_of_the_request",
    "not_shared",
    "not_the_parents",
    "nothing_to_adopt",
    "open_failed",
    "peer_failed",
    "peer_unusable",
    "stream_failed",
    "system_refused",
    "unknown_device",
    "warn_of_limit",
]
