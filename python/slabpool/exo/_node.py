"""Puts runs into a node of exo 0.0.15: replaces the methods through which work enters, leaves and ends.

What must stay true: nothing of exo's classes is changed, only attributes of this one node (and its API); each
replacement calls the original, with the plain id; `uninstall` takes all of it away again. An exception of
exo's is noted and goes its way.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from typing import Any

from slabpool._core.pool import Pool
from slabpool.errors import InvalidTypeError
from slabpool.exo._api import Clients
from slabpool.exo._engine import Engines
from slabpool.exo._run import Run, RunRecord
from slabpool.exo._runs import CLIENT_GONE, FINISHED, RunRefusedError, Runs, log, one_line
from slabpool.exo._wire import Message, parse, tagged, untagged

_OBSERVER = "slabpool"
_SEND_TIMEOUT = 15.0  # seconds; what exo allows its own broadcasts
#: Entries that exo keeps by request id and never, or not always, removes.
_ENTRIES = (
    "outstanding_requests",
    "buffered_token_output",
    "buffered_logits",
    "buffered_inputs",
    "buffered_partials",
)
#: Methods of exo's Node, and the adapter's that take their places.
_REPLACED = {
    "process_prompt": "_take_prompt",
    "process_tensor": "_take_tensor",
    "_process_tensor": "_work_on_tensor",
    "process_inference_result": "_take_result",
    "trigger_on_token_callbacks": "_hand_out_tokens",
    "broadcast_result": "_broadcast_result",
    "forward_prompt": "_forward_prompt",
    "forward_tensor": "_forward_tensor",
    "update_peers": "_update_peers",
}


class Adapter:
    """What `install` gives: the requests of one exo node.

    Attributes
    ----------
    pool : Pool
        Where the node's KV states are.

    Examples
    --------
    >>> import slabpool
    >>> adapter = slabpool.exo.install(node)  # doctest: +SKIP
    >>> adapter.counts()  # doctest: +SKIP
    {'runs': 0, 'outstanding_requests': 0, 'buffered_token_output': 0, ..., 'live': 0, 'retained': 0}
    """

    def __init__(self, node: Any, pool: Pool, api: Any) -> None:
        missing = [name for name in (*_REPLACED, "peers", "on_opaque_status") if not hasattr(node, name)]
        if missing:
            raise InvalidTypeError(
                f"node must be an exo.orchestration.Node of exo 0.0.15, got {node!r}, which has no "
                f"{', '.join(missing)}"
            )
        if any(name in vars(node) for name in _REPLACED):
            raise InvalidTypeError(
                f"node {node.id} has had methods replaced already, by slabpool.exo.install or somebody else; "
                "install once, or uninstall() first"
            )
        self.pool = pool
        self._node = node
        self._runs = Runs(node.id, pool, self)
        self._engines = Engines(self._runs.current)
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients = Clients(api, self._client_gone) if api is not None else None
        self._original = {name: getattr(node, name) for name in _REPLACED}
        for name, ours in _REPLACED.items():
            setattr(node, name, getattr(self, ours))
        node.on_opaque_status.register(_OBSERVER).on_next(self._on_status)

    # ---- for whoever runs the node

    def runs(self) -> list[RunRecord]:
        """The prompts that this node works on, or waits for other nodes' acks of; oldest first.

        Returns
        -------
        list of RunRecord
        """
        return self._runs.records()

    def cancel(self, request_id: str) -> bool:
        """Ends a request on all nodes, as if its client had gone away. On the event loop's thread.

        Returns
        -------
        bool
            False if none of this id is running.
        """
        run = self._runs.current(request_id)
        if run is None or run.over:
            return False
        self._runs.end(run, CLIENT_GONE)
        return True

    def counts(self) -> dict[str, int]:
        """How much is kept by request: all of it returns to 0 when nothing runs.

        Returns
        -------
        dict of str to int
            Entries of exo's own dictionaries, states of the engine, runs, and the pool's live and retained
            bytes.
        """
        stats = self.pool.stats()
        return {
            "runs": len(self._runs),
            **{name: len(getattr(self._node, name, ())) for name in _ENTRIES},
            **({"token_queues": self._clients.queues()} if self._clients is not None else {}),
            "states": self._engines.states(),
            "live": stats.live + stats.in_doubt,
            "retained": stats.retained,
        }

    def uninstall(self) -> None:
        """Ends what runs here and makes the node as it was before `install`. On the event loop's thread."""
        self._runs.end_all("slabpool was taken out of the node")
        for name in self._original:
            delattr(self._node, name)
        self._node.on_opaque_status.deregister(_OBSERVER)
        self._engines.uninstall()
        if self._clients is not None:
            self._clients.uninstall()

    # ---- surroundings of the rules

    def ring(self) -> tuple[str, ...]:
        """Ids of the nodes in the order of their layers."""
        partitions = self._node.partitioning_strategy.partition(self._node.topology)
        return tuple(partition.node_id for partition in partitions)

    def peers(self) -> set[str]:
        """Ids of the nodes that exo counts as there."""
        return {peer.id() for peer in self._node.peers}

    def send(self, peer: str, request_id: str, message: Message) -> None:
        """Sends a message in a task of its own; what is lost is said again by a sweep."""
        for handle in self._node.peers:
            if handle.id() == peer:
                task = asyncio.get_running_loop().create_task(_send(handle, request_id, message))
                self._tasks.add(task)  # the loop itself keeps tasks weakly
                task.add_done_callback(self._tasks.discard)

    def forget(self, run: Run) -> None:
        """Drops exo's entries for the run."""
        for name in _ENTRIES:
            entries = getattr(self._node, name, None)
            if entries is not None:
                entries.pop(run.request_id, None)
        self._engines.forget(run)

    def failed(self, run: Run) -> None:
        """A client that waits on this node gets an error and does not wait for its timeout."""
        if self._clients is not None and run.entry == self._node.id:
            self._clients.fail(run.request_id, run.reason)

    # ---- what replaces the node's methods

    async def _take_prompt(
        self, base_shard: Any, prompt: str, request_id: str | None = None, inference_state: Any = None
    ) -> Any:
        request_id, tag = untagged(request_id or str(uuid.uuid4()))
        client = self._clients.caller() if self._clients is not None and tag is None else None
        run = await (self._runs.begin(request_id) if tag is None else self._runs.join(request_id, tag))
        self._runs.hold(run)
        try:
            self._engines.adopt(self._node.inference_engine)
            if client is not None and self._clients is not None:
                if client.gone:
                    self._runs.end(run, CLIENT_GONE)
                    raise RunRefusedError(f"request {request_id!r}: {CLIENT_GONE}")
                self._clients.attach(request_id, client)
            if run.ring[0] == self._node.id:
                run.steps += 1
            state = {} if inference_state is None else inference_state
            return await self._original["process_prompt"](base_shard, prompt, request_id, state)
        except BaseException as error:
            self._runs.end(run, f"node {self._node.id}: {one_line(error)}")
            raise
        finally:
            self._runs.let_go(run)

    async def _take_tensor(
        self, base_shard: Any, tensor: Any, request_id: str | None = None, inference_state: Any = None
    ) -> Any:
        request_id, tag = untagged(request_id or str(uuid.uuid4()))
        if tag is None:
            raise RunRefusedError(
                f"a tensor of request {request_id!r} came to node {self._node.id} from one without slabpool; "
                "call slabpool.exo.install on every node of the ring"
            )
        run = await self._runs.join(request_id, tag)
        self._runs.hold(run)
        run.steps += 1
        try:
            self._engines.adopt(self._node.inference_engine)
            return await self._original["process_tensor"](base_shard, tensor, request_id, inference_state)
        except BaseException as error:
            self._runs.end(run, f"node {self._node.id}: {one_line(error)}")
            raise
        finally:
            self._runs.let_go(run)

    async def _work_on_tensor(
        self, base_shard: Any, tensor: Any, request_id: str | None = None, inference_state: Any = None
    ) -> Any:
        result = await self._original["_process_tensor"](base_shard, tensor, request_id, inference_state)
        run = self._runs.current(request_id or "")
        if result is None and run is not None:  # exo has printed an exception and goes on
            cause = "the work failed, see its log" if run.error is None else one_line(run.error)
            self._runs.end(run, f"node {self._node.id}: {cause}")
        return result

    async def _take_result(
        self, shard: Any, result: Any, request_id: str | None = None, inference_state: Any = None
    ) -> Any:
        run = self._runs.current(request_id or "")
        if run is not None and run.over:  # cancelled while the engine was at it
            return None
        try:
            return await self._original["process_inference_result"](
                shard, result, request_id, inference_state
            )
        except Exception as error:
            if run is not None:
                run.error = error
            raise

    def _hand_out_tokens(self, request_id: str, tokens: Any, is_finished: bool) -> None:
        # exo calls this for its own tokens only, on the last node: the one that knows of the end.
        self._original["trigger_on_token_callbacks"](request_id, tokens, is_finished)
        run = self._runs.current(request_id)
        if is_finished and run is not None:
            self._runs.end(run, FINISHED, failed=False)

    def _broadcast_result(self, request_id: str, result: Any, is_finished: bool) -> Coroutine[Any, Any, None]:
        # Held from this call on, not from when the task that exo makes of it first runs: what this node has
        # acknowledged, no result of it comes after.
        run = self._runs.current(request_id)
        return self._held(run, self._original["broadcast_result"](request_id, result, is_finished))

    def _forward_tensor(
        self, base_shard: Any, tensor: Any, request_id: str, target_index: int, inference_state: Any = None
    ) -> Coroutine[Any, Any, None]:
        run = self._runs.current(request_id)
        if run is None or run.over:
            return _nothing()
        name = tagged(request_id, self._runs.tag(run))
        forward = self._original["forward_tensor"]
        return self._held(run, forward(base_shard, tensor, name, target_index, inference_state))

    def _held(self, run: Run | None, work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
        if run is None:
            return work
        self._runs.hold(run)
        return self._until_done(run, work)

    async def _until_done(self, run: Run, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # in a task of exo's that nobody asks for its result
            self._runs.end(run, f"node {self._node.id}: {one_line(error)}")
        finally:
            self._runs.let_go(run)

    async def _forward_prompt(
        self, base_shard: Any, prompt: str, request_id: str, target_index: int, inference_state: Any = None
    ) -> Any:
        run = self._runs.current(request_id)
        if run is None or run.over:
            raise RunRefusedError(f"request {request_id!r} is over on node {self._node.id}")
        name = tagged(request_id, self._runs.tag(run))
        return await self._original["forward_prompt"](base_shard, prompt, name, target_index, inference_state)

    async def _update_peers(self, wait_for_peers: int = 0) -> bool:
        changed: bool = await self._original["update_peers"](wait_for_peers)
        self._runs.sweep()
        return changed

    # ---- what is heard

    def _on_status(self, request_id: str, status: str) -> None:
        try:
            message = parse(status)
        except (TypeError, ValueError, KeyError) as error:
            log.warning("node %s passes over a message it does not understand: %s", self._node.id, error)
            return
        if message is not None:
            self._runs.hear(request_id, message)

    def _client_gone(self, request_id: str) -> None:
        run = self._runs.current(request_id)
        if run is not None and run.entry == self._node.id:
            self._runs.end(run, CLIENT_GONE)


async def _send(peer: Any, request_id: str, message: Message) -> None:
    try:
        await asyncio.wait_for(peer.send_opaque_status(request_id, message.to_status()), _SEND_TIMEOUT)
    except Exception as error:  # whatever a transport raises; a sweep says it again
        log.debug("message to node %s about request %r was lost: %s", peer.id(), request_id, one_line(error))


async def _nothing() -> None:
    """In place of work for a run that is over."""
