"""Adds runs to a node of exo 0.0.15: replaces the methods through which work enters, leaves and ends.

Invariants:
- exo's classes are not changed, only attributes of this node (and of its API). `uninstall` restores them.
- Each replacement calls the original with the plain request id.
- An exception of exo's is recorded and raised again.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Coroutine, Iterator
from typing import Any

from slabpool._core.pool import Pool
from slabpool.errors import InvalidTypeError
from slabpool.exo._api import Clients
from slabpool.exo._engine import Engines
from slabpool.exo._run import Run, RunRecord
from slabpool.exo._runs import CLIENT_GONE, FINISHED, RunRefusedError, Runs, log, one_line
from slabpool.exo._wire import Message, parse, tagged, untagged

_OBSERVER = "slabpool"
_SEND_TIMEOUT = 15.0  # seconds, as for exo's own broadcasts
#: Dictionaries of exo's node, by request id, whose entries exo does not always remove.
_ENTRIES = (
    "outstanding_requests",
    "buffered_token_output",
    "buffered_logits",
    "buffered_inputs",
    "buffered_partials",
)
#: Methods of exo's Node, and the adapter's methods that replace them.
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
    """The requests of one exo node; `install` returns it.

    Attributes
    ----------
    pool : Pool
        Memory of the node's KV states.

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
                f"methods of node {node.id} have been replaced already, by slabpool.exo.install or by other "
                "code; call install once, or uninstall() first"
            )
        self.pool = pool
        self._node = node
        self._runs = Runs(node.id, pool, self)
        self._engines = Engines(self._runs.current)
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients = Clients(api, self._client_gone) if api is not None else None
        self._original = {name: getattr(node, name) for name in _REPLACED}
        for name, replacement in _REPLACED.items():
            setattr(node, name, getattr(self, replacement))
        node.on_opaque_status.register(_OBSERVER).on_next(self._on_status)

    # ---- public methods

    def runs(self) -> list[RunRecord]:
        """List the prompts that this node works on, or for which it waits for other nodes' acks.

        Returns
        -------
        list of RunRecord
            Oldest first.
        """
        return self._runs.records()

    def cancel(self, request_id: str) -> bool:
        """End a request on all nodes, as if its client had disconnected.

        Call this on the event loop's thread.

        Parameters
        ----------
        request_id : str

        Returns
        -------
        bool
            False if no request with this id is running.
        """
        run = self._runs.current(request_id)
        if run is None or run.over:
            return False
        self._runs.end(run, CLIENT_GONE)
        return True

    def counts(self) -> dict[str, int]:
        """Count everything that is kept for requests. All counts return to 0 when no prompt runs.

        Returns
        -------
        dict of str to int
            Number of runs, entries of exo's dictionaries and states of engines; live bytes of the pool
            (including those in doubt) and retained bytes.
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
        """End all runs and restore the node as it was before `install`.

        Call this on the event loop's thread.
        """
        self._runs.end_all("slabpool was uninstalled from the node")
        for name in self._original:
            delattr(self._node, name)
        self._node.on_opaque_status.deregister(_OBSERVER)
        self._engines.uninstall()
        if self._clients is not None:
            self._clients.uninstall()

    # ---- what `Runs` needs (`Surroundings`)

    def ring(self) -> tuple[str, ...]:
        """Return the ids of the nodes in the order of their layers."""
        partitions = self._node.partitioning_strategy.partition(self._node.topology)
        return tuple(partition.node_id for partition in partitions)

    def peers(self) -> set[str]:
        """Return the ids of exo's current peers."""
        return {peer.id() for peer in self._node.peers}

    def send(self, peer: str, request_id: str, message: Message) -> None:
        """Send a message in a new task. If it is lost, a sweep repeats it."""
        for handle in self._node.peers:
            if handle.id() == peer:
                task = asyncio.get_running_loop().create_task(_send(handle, request_id, message))
                self._tasks.add(task)  # the event loop has only a weak reference
                task.add_done_callback(self._tasks.discard)

    def forget(self, run: Run) -> None:
        """Remove exo's entries and the engines' state for the run."""
        for name in _ENTRIES:
            entries = getattr(self._node, name, None)
            if entries is not None:
                entries.pop(run.request_id, None)
        self._engines.forget(run)

    def failed(self, run: Run) -> None:
        """Send the error to the run's client, if that is on this node, instead of letting it time out."""
        if self._clients is not None and run.entry == self._node.id:
            self._clients.fail(run.request_id, run.reason)

    # ---- replacements of the node's methods

    async def _take_prompt(
        self, base_shard: Any, prompt: str, request_id: str | None = None, inference_state: Any = None
    ) -> Any:
        request_id, tag = untagged(request_id or str(uuid.uuid4()))
        client = self._clients.caller() if self._clients is not None and tag is None else None
        run = await (self._runs.begin(request_id) if tag is None else self._runs.join(request_id, tag))
        with self._working(run):
            if client is not None and self._clients is not None:
                if client.disconnected:
                    self._runs.end(run, CLIENT_GONE)
                    raise RunRefusedError(f"request {request_id!r}: {CLIENT_GONE}")
                self._clients.attach(request_id, client)
            if run.ring[0] == self._node.id:
                run.steps += 1
            state = {} if inference_state is None else inference_state
            return await self._original["process_prompt"](base_shard, prompt, request_id, state)

    async def _take_tensor(
        self, base_shard: Any, tensor: Any, request_id: str | None = None, inference_state: Any = None
    ) -> Any:
        request_id, tag = untagged(request_id or str(uuid.uuid4()))
        if tag is None:
            raise RunRefusedError(
                f"node {self._node.id} got a tensor of request {request_id!r} from a node without slabpool; "
                "call slabpool.exo.install on every node of the ring"
            )
        run = await self._runs.join(request_id, tag)
        with self._working(run):
            run.steps += 1
            return await self._original["process_tensor"](base_shard, tensor, request_id, inference_state)

    @contextlib.contextmanager
    def _working(self, run: Run) -> Iterator[None]:
        """Hold the run while the engine works on it; end the run if the work raises."""
        self._runs.hold(run)
        try:
            self._engines.adopt(self._node.inference_engine)
            yield
        except BaseException as error:
            self._runs.end(run, f"node {self._node.id}: {one_line(error)}")
            raise
        finally:
            self._runs.unhold(run)

    async def _work_on_tensor(
        self, base_shard: Any, tensor: Any, request_id: str | None = None, inference_state: Any = None
    ) -> Any:
        result = await self._original["_process_tensor"](base_shard, tensor, request_id, inference_state)
        run = self._runs.current(request_id or "")
        if result is None and run is not None:  # exo has caught and printed an exception
            cause = "the work failed, see the node's log" if run.error is None else one_line(run.error)
            self._runs.end(run, f"node {self._node.id}: {cause}")
        return result

    async def _take_result(
        self, shard: Any, result: Any, request_id: str | None = None, inference_state: Any = None
    ) -> Any:
        run = self._runs.current(request_id or "")
        if run is not None and run.over:  # it ended while the engine was working
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
        # exo calls this only on the last node, which is the one that knows when the prompt has finished.
        self._original["trigger_on_token_callbacks"](request_id, tokens, is_finished)
        run = self._runs.current(request_id)
        if is_finished and run is not None:
            self._runs.end(run, FINISHED, failed=False)

    def _broadcast_result(self, request_id: str, result: Any, is_finished: bool) -> Coroutine[Any, Any, None]:
        # Hold the run now and not when exo's task first runs, because no result may be sent after the ack.
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
        except Exception as error:  # not raised again, because exo never reads the result of this task
            self._runs.end(run, f"node {self._node.id}: {one_line(error)}")
        finally:
            self._runs.unhold(run)

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

    # ---- callbacks

    def _on_status(self, request_id: str, status: str) -> None:
        try:
            message = parse(status)
        except (TypeError, ValueError, KeyError) as error:
            log.warning("node %s ignores a malformed message: %s", self._node.id, error)
            return
        if message is not None:
            self._runs.receive(request_id, message)

    def _client_gone(self, request_id: str) -> None:
        run = self._runs.current(request_id)
        if run is not None and run.entry == self._node.id:
            self._runs.end(run, CLIENT_GONE)


async def _send(peer: Any, request_id: str, message: Message) -> None:
    try:
        await asyncio.wait_for(peer.send_opaque_status(request_id, message.to_status()), _SEND_TIMEOUT)
    except Exception as error:  # any error of a transport; a sweep repeats the message
        log.debug("message to node %s about request %r was lost: %s", peer.id(), request_id, one_line(error))


async def _nothing() -> None:
    """Do nothing, instead of work for a run that is over."""
