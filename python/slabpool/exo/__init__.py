"""slabpool in exo 0.0.15: a request for each prompt, with the ring's nodes as devices.

exo's nodes learn that a prompt has begun, and never that it is over: KV states go by an LRU of two, which
evicts prompts that are running, and other entries stay for ever. `install` gives both ends of a
prompt.
Call it on every node of the ring, after the node (and its ChatGPTAPI, if it has one) was made and before it
starts.

Known versions: exo v0.0.15-alpha with tinygrad 0.10.1 (KV states in the pool) and with its dummy engine.
"""

from __future__ import annotations

import os
from typing import Any

from slabpool._core.pool import Pool
from slabpool.exo._api import RunFailedError, find_api
from slabpool.exo._node import Adapter
from slabpool.exo._run import RunRecord
from slabpool.exo._runs import RunRefusedError

__all__ = ["Adapter", "RunFailedError", "RunRecord", "RunRefusedError", "install"]


def install(node: Any, *, pool: Pool | None = None, api: Any = None) -> Adapter:
    """Gives a node of exo a request for each prompt, and an end to it.

    From then on, on this node:

    - a prompt opens a request whose devices are the nodes of the ring; each node acknowledges when it will
      not touch the prompt again: on finish, error, when its client has gone away, and when a node is lost
      (what the lost node held is let go);
    - KV states live in the request's memory until then, however many prompts run, and a prompt that finds no
      room fails with `PoolExhausted` in place of evicting another's;
    - entries by request id go with it: ``outstanding_requests``, ``buffered_token_output``, ``token_queues``;
    - a prompt under an id that is still running waits for its end;
    - a client whose prompt failed is told at once.

    Parameters
    ----------
    node : exo.orchestration.Node
        Not yet started.
    pool : Pool, optional
        Where KV states are; by default a pool of half the machine's memory, which takes what it uses.
    api : exo.api.ChatGPTAPI, optional
        The node's HTTP API; by default the one that listens to this node's tokens, if there is one.

    Returns
    -------
    Adapter
        For looking (`counts`, `runs`), `cancel` and `uninstall`.

    Raises
    ------
    InvalidTypeError
        The node is not one of exo 0.0.15, or has slabpool already.
    InvalidArgumentError
        The API is serving already.

    Examples
    --------
    In exo's ``main.py``, after ``api = ChatGPTAPI(...)``:

    >>> import slabpool
    >>> adapter = slabpool.exo.install(node)  # doctest: +SKIP
    """
    if pool is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        pool = Pool(memory // 2, name=f"exo-{getattr(node, 'id', '?')}")
    return Adapter(node, pool, api if api is not None else find_api(node))
