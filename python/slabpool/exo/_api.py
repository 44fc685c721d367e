"""HTTP clients of exo's ChatGPT API: removes their token queues and detects when they disconnect.

Invariants:
- An entry in `token_queues` belongs to one HTTP request that this node is handling, and is removed with it.
  Tokens of requests on other nodes make no entry.
- When a client disconnects before its prompt is over, the prompt ends.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

from slabpool.errors import InvalidArgumentError, SlabpoolError


class RunFailedError(SlabpoolError):
    """A prompt has ended without a result; its HTTP client gets this error.

    Examples
    --------
    >>> import slabpool
    >>> issubclass(slabpool.exo.RunFailedError, slabpool.SlabpoolError)
    True
    """


class Client:
    """One HTTP request, and the prompts that its handler started."""

    def __init__(self) -> None:
        self.requests: set[str] = set()
        self.disconnected = False


#: The client whose HTTP request is being handled. Tasks that the handler starts inherit it.
_client: ContextVar[Client | None] = ContextVar("slabpool_exo_client", default=None)


class _Failure:
    """An entry of a token queue that raises `RunFailedError` when exo unpacks it."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __iter__(self) -> Iterator[NoReturn]:
        raise RunFailedError(self._reason)


def find_api(node: Any) -> Any:
    """Find the ChatGPTAPI that has registered for the node's tokens; None if there is none.

    The API's callback is the only reference from a node to its API, so this searches the callback's closure.
    """
    system = getattr(node, "on_token", None)
    for callback in getattr(system, "callbacks", {}).values():
        for observer in getattr(callback, "observers", ()):
            if isinstance(observer, types.FunctionType):
                for cell in observer.__closure__ or ():
                    if hasattr(cell.cell_contents, "token_queues"):
                        return cell.cell_contents
    return None


class Clients:
    """The HTTP clients of a node's API."""

    def __init__(self, api: Any, on_disconnect: Callable[[str], None]) -> None:
        # Imported here, because only nodes with an API need aiohttp. It is a dependency of exo.
        from aiohttp import web

        if api.app.frozen:
            raise InvalidArgumentError(
                "the node's API is already serving; call slabpool.exo.install before api.run()"
            )
        self._api = api
        self._on_disconnect = on_disconnect
        self._by_request: dict[str, Client] = {}
        self._handle_tokens = api.handle_tokens
        api.handle_tokens = self._take_tokens
        api.run = self._run

        @web.middleware
        async def watch(request: Any, handler: Callable[[Any], Any]) -> Any:
            with self._watched():
                return await handler(request)

        self._middleware = watch
        api.app.middlewares.append(watch)

    def uninstall(self) -> None:
        """Restore the methods of the API."""
        del self._api.handle_tokens
        del self._api.run
        if not self._api.app.frozen:
            self._api.app.middlewares.remove(self._middleware)

    def queues(self) -> int:
        """Return the number of token queues."""
        return len(self._api.token_queues)

    def caller(self) -> Client | None:
        """Return the client whose HTTP request is being handled, if there is one."""
        return _client.get()

    def attach(self, request_id: str, client: Client) -> None:
        """Deliver tokens of `request_id` to this client from now on."""
        client.requests.add(request_id)
        self._by_request[request_id] = client

    def fail(self, request_id: str, reason: str) -> None:
        """Send the error to the client of a failed prompt."""
        if request_id in self._by_request:
            self._api.token_queues[request_id].put_nowait(_Failure(reason))

    async def _take_tokens(self, request_id: str, tokens: Any, is_finished: bool) -> None:
        if request_id in self._by_request:  # without a client the queue would never be read or removed
            await self._handle_tokens(request_id, tokens, is_finished)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        client = Client()
        token = _client.set(client)
        try:
            yield
        finally:
            _client.reset(token)
            client.disconnected = True
            for request_id in client.requests:
                if self._by_request.get(request_id) is client:
                    del self._by_request[request_id]
                    self._api.token_queues.pop(request_id, None)
                    self._on_disconnect(request_id)

    async def _run(self, host: str = "0.0.0.0", port: int = 52415) -> None:
        """Replace exo's own `run`: the same, but a handler is cancelled when its client disconnects."""
        from aiohttp import web

        runner = web.AppRunner(self._api.app, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
