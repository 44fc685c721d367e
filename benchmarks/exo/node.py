"""One node of exo, built as its own main.py does it, with a control port for the driver of the run.

Run by `benchmarks.exo`, with the Python that has exo's dependencies: ``python node.py '{"exo": ..., ...}'``.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any


def make(options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A node, its API and, if asked for, slabpool's adapter."""

    def get(module: str) -> Any:
        return importlib.import_module(module)

    manual = get("exo.networking.manual.manual_discovery")
    handle = get("exo.networking.grpc.grpc_peer_handle").GRPCPeerHandle
    strategy = get("exo.topology.ring_memory_weighted_partitioning_strategy")
    downloader = get("exo.download.shard_download").NoopShardDownloader()
    engine = get("exo.inference.inference_engine").get_inference_engine("tinygrad", downloader)
    node = get("exo.orchestration.node").Node(
        options["id"],
        None,
        engine,
        manual.ManualDiscovery(options["peers"], options["id"], create_peer_handle=handle),
        downloader,
        partitioning_strategy=strategy.RingMemoryWeightedPartitioningStrategy(),
        max_generate_tokens=options["tokens"],
    )
    node.server = get("exo.networking.grpc.grpc_server").GRPCServer(node, "127.0.0.1", options["grpc"])
    api = get("exo.api").ChatGPTAPI(
        node, type(engine).__name__, response_timeout=30, default_model=get("benchmarks.exo.tiny").NAME
    )
    adapter = None
    if options["slabpool"]:
        import slabpool

        adapter = slabpool.exo.install(node, pool=slabpool.Pool("1GiB"))
    return node, api, adapter


def rss() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Control:
    """What the driver of the run can ask of a node."""

    def __init__(self, node: Any, api: Any, adapter: Any) -> None:
        self.node = node
        self.api = api
        self.adapter = adapter

    async def counts(self, request: Any) -> Any:
        """Sizes of all per-request dictionaries."""
        counts = {
            "outstanding_requests": len(self.node.outstanding_requests),
            "buffered_token_output": len(self.node.buffered_token_output),
            "token_queues": len(self.api.token_queues),
            "states": len(self.node.inference_engine.states),
        }
        if self.adapter is not None:
            counts |= self.adapter.counts()
            for run in self.adapter.runs():
                print(run, flush=True)
        ring = self.node.partitioning_strategy.partition(self.node.topology)
        return self._json({"counts": counts, "rss": rss(), "ring": [part.node_id for part in ring]})

    async def generate(self, request: Any) -> Any:
        """Tokens for a prompt, under an id that the caller chooses."""
        asked = await request.json()
        tokens: list[int] = []
        done = asyncio.Event()

        def on_token(request_id: str, new: list[int], finished: bool) -> None:
            if request_id == asked["id"]:
                tokens.extend(new)
                if finished:
                    done.set()

        name = f"control-{asked['id']}-{id(done)}"
        self.node.on_token.register(name).on_next(on_token)
        try:
            shard = importlib.import_module("exo.models").build_base_shard(
                self.api.default_model, "TinygradDynamicShardInferenceEngine"
            )
            await self.node.process_prompt(shard, asked["prompt"], request_id=asked["id"])
            await asyncio.wait_for(done.wait(), asked["timeout"])
        except Exception as error:  # any error of exo is an answer here
            return self._json({"error": f"{type(error).__name__}: {error}", "tokens": tokens})
        finally:
            self.node.on_token.deregister(name)
        return self._json({"tokens": tokens})

    def _json(self, value: object) -> Any:
        from aiohttp import web

        return web.json_response(value)


async def main(options: dict[str, Any]) -> None:
    """Serve until killed."""
    from aiohttp import web

    importlib.import_module("benchmarks.exo.tiny").put_in()
    node, api, adapter = make(options)
    await node.start(wait_for_peers=options["wait_for_peers"])
    await api.run(host="127.0.0.1", port=options["api"])
    control = Control(node, api, adapter)
    app = web.Application()
    app.router.add_get("/counts", control.counts)
    app.router.add_post("/generate", control.generate)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options["control"]).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    os.environ.setdefault("CLANG", "1")
    # The directory of this file would make `benchmarks.exo` importable as `exo`.
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [given["exo"], str(Path(here).parent.parent), *(p for p in sys.path if p not in (here, ""))]
    logging.basicConfig()
    logging.getLogger("slabpool").setLevel(logging.INFO)
    asyncio.run(main(given))
