"""HTTP clients of exo's ChatGPT API: their token queues go with them, and their leaving is noticed.

What must stay true: an entry in `token_queues` belongs to one HTTP request that is being handled on this
node, and goes with it; tokens of other nodes' requests make none. A client that is gone before its prompt is
over ends the prompt.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

from slabpool.errors import InvalidArgumentError, SlabpoolError


class RunFailedError(SlabpoolError):
    """The prompt that an HTTP client waits for has ended without a result.

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
        self.gone = False


#: Of the HTTP request that is being handled; tasks that its handler makes have it too.
_client: ContextVar[Client | None] = ContextVar("slabpool_exo_client", default=None)


class _Failure:
    """In a token queue: whoever takes tokens out of it gets the error instead."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __iter__(self) -> Iterator[NoReturn]:
        raise RunFailedError(self._reason)


def find_api(node: Any) -> Any:
    """The ChatGPTAPI that listens to the node's tokens, or None.

    exo makes no other link from a node to its API than the callback that the API has registered.
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
    """The HTTP requests that a node's API handles."""

    def __init__(self, api: Any, gone: Callable[[str], None]) -> None:
        # aiohttp is exo's own dependency, so whoever has an API has it.
        from aiohttp import web

        if api.app.frozen:
            raise InvalidArgumentError(
                "the node's API is already serving; call slabpool.exo.install before api.run()"
            )
        self._api = api
        self._gone = gone
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
        """Gives the API its own methods back."""
        del self._api.handle_tokens
        del self._api.run
        if not self._api.app.frozen:
            self._api.app.middlewares.remove(self._middleware)

    def queues(self) -> int:
        """Token queues there are."""
        return len(self._api.token_queues)

    def caller(self) -> Client | None:
        """The client of the HTTP request that is being handled, if there is one."""
        return _client.get()

    def attach(self, request_id: str, client: Client) -> None:
        """The client's prompt has begun: tokens of this id are its."""
        client.requests.add(request_id)
        self._by_request[request_id] = client

    def fail(self, request_id: str, reason: str) -> None:
        """The prompt has come to nothing: its client is told at once."""
        if request_id in self._by_request:
            self._api.token_queues[request_id].put_nowait(_Failure(reason))

    async def _take_tokens(self, request_id: str, tokens: Any, is_finished: bool) -> None:
        if request_id in self._by_request:  # else nobody would ever take them out
            await self._handle_tokens(request_id, tokens, is_finished)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        client = Client()
        token = _client.set(client)
        try:
            yield
        finally:
            _client.reset(token)
            client.gone = True
            for request_id in client.requests:
                if self._by_request.get(request_id) is client:
                    del self._by_request[request_id]
                    self._api.token_queues.pop(request_id, None)
                    self._gone(request_id)

    async def _run(self, host: str = "0.0.0.0", port: int = 52415) -> None:
        """As exo's own, and a handler is cancelled when its client has gone away."""
        from aiohttp import web

        runner = web.AppRunner(self._api.app, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
