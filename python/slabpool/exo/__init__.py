"""slabpool in exo 0.0.15: one request for each prompt, with the ring's nodes as devices.

exo's nodes learn when a prompt begins, but not when it ends. KV states are evicted by an LRU of two, even
while their prompt is running, and other entries are never removed. `install` adds the end of a prompt. Call
it on every node of the ring, after the node (and its ChatGPTAPI, if it has one) was made and before it
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
    """Open a request for each prompt of an exo node, and release it when the prompt is over.

    After this call, on this node:

    - A prompt opens a request whose devices are the nodes of the ring. Each node acknowledges when it will
      not use the prompt again: when the prompt has finished or failed, or its client has disconnected. When a
      node is lost, its holds end.
    - KV states are in the request's memory until then, for any number of running prompts. A prompt that finds
      no room fails with `PoolExhausted`; it does not evict the state of another one.
    - exo's entries for the prompt are removed with it: ``outstanding_requests``, ``buffered_token_output``,
      ``token_queues``.
    - A prompt whose id is already running waits for the end of the earlier one.
    - A client whose prompt failed gets the error at once.

    Parameters
    ----------
    node : exo.orchestration.Node
        Not yet started.
    pool : Pool, optional
        Memory of the KV states. By default a new pool with a capacity of half the machine's memory; it
        commits memory only as needed.
    api : exo.api.ChatGPTAPI, optional
        The node's HTTP API. By default the one that has registered for this node's tokens, if there is one.

    Returns
    -------
    Adapter
        It has `counts`, `runs`, `cancel` and `uninstall`.

    Raises
    ------
    InvalidTypeError
        `node` is not a node of exo 0.0.15, or slabpool is already installed on it.
    InvalidArgumentError
        The API is already serving.

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
