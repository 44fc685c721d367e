"""Nodes of exo as processes: start them, ask them, kill them.

Invariant: when the ring is left, every process that it started is dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent


def free_ports(count: int) -> list[int]:
    """Ports on which no process listens now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Node:
    """One process."""

    name: str
    process: subprocess.Popen[str]
    api: int
    control: int
    log: Path

    def ask(self, path: str, body: object = None, timeout: float = 150.0) -> Any:
        """The answer of the control port."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.control}{path}", data)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)

    def counts(self) -> dict[str, int]:
        """What the node keeps per request."""
        counts: dict[str, int] = self.ask("/counts")["counts"]
        return counts

    def generate(self, request_id: str, prompt: str, timeout: float = 60.0) -> Any:
        """Tokens, or an error."""
        return self.ask("/generate", {"id": request_id, "prompt": prompt, "timeout": timeout})

    def chat(self, prompt: str, *, stream: bool) -> urllib.request.Request:
        """A request for exo's own HTTP API."""
        body = {"model": "slabpool-tiny", "stream": stream, "messages": [{"role": "user", "content": prompt}]}
        return urllib.request.Request(
            f"http://127.0.0.1:{self.api}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )


@dataclass
class Ring:
    """Nodes on loopback that know each other, with or without slabpool."""

    exo: Path
    python: str
    names: tuple[str, ...]
    slabpool: bool
    tokens: int
    environment: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def __enter__(self) -> Ring:
        self._directory = tempfile.TemporaryDirectory(prefix="slabpool-exo-")
        ports = {name: free_ports(3) for name in self.names}
        # The same figures for every node, because exo divides the layers by memory.
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        peers = {
            name: {
                "address": "127.0.0.1",
                "port": ports[name][0],
                "device_capabilities": {
                    "model": "box",
                    "chip": "cpu",
                    "memory": memory,
                    "flops": {"fp32": 0, "fp16": 0, "int8": 0},
                },
            }
            for name in self.names
        }
        config = Path(self._directory.name, "peers.json")
        config.write_text(json.dumps({"peers": peers}))
        try:
            for name in self.names:
                self._start(name, ports[name], config)
            for node in self.nodes:
                self._wait_ready(node)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self, name: str, ports: list[int], config: Path) -> None:
        grpc, api, control = ports
        options = {
            "exo": str(self.exo),
            "id": name,
            "peers": str(config),
            "grpc": grpc,
            "api": api,
            "control": control,
            "slabpool": self.slabpool,
            "tokens": self.tokens,
            "wait_for_peers": len(self.names) - 1,
        }
        log = Path(self._directory.name, f"{name}.log")
        environment = os.environ | {"EXO_HOME": self._directory.name, "CLANG": "1"} | self.environment
        with log.open("w") as out:
            process = subprocess.Popen(
                [self.python, str(HERE / "node.py"), json.dumps(options)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self._directory.name,
                text=True,
            )
        self.nodes.append(Node(name, process, api, control, log))

    def _wait_ready(self, node: Node) -> None:
        def ready() -> bool:
            if node.process.poll() is not None:
                raise RuntimeError(f"node {node.name} did not start:\n{node.log.read_text()[-3000:]}")
            try:
                ring = node.ask("/counts", timeout=5)["ring"]
            except (urllib.error.URLError, OSError):
                return False
            return set(ring) == set(self.names)

        wait_until(ready, 120, f"node {node.name} is ready")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for node in self.nodes:
                print(f"--- the end of {node.name}'s log\n{node.log.read_text()[-4000:]}")
        for node in self.nodes:
            node.process.kill()
        for node in self.nodes:
            node.process.wait()
        self._directory.cleanup()


def wait_until(condition: Any, seconds: float, what: str) -> float:
    """Seconds until the condition held; raises TimeoutError if it did not in time."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - start
