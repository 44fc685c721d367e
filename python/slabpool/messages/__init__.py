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
    group_closed,
    group_failed,
    not_of_the_request,
    not_shared,
    not_the_parents,
    open_failed,
    stream_failed,
)
from slabpool.messages.system import not_loaded, system_refused

__all__ = [
    "ack_failed",
    "busy",
    "call_failed",
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
    "open_failed",
    "peer_failed",
    "peer_unusable",
    "stream_failed",
    "system_refused",
    "unknown_device",
    "warn_of_limit",
]
