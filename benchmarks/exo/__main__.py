"""The whole run: the reference, then the same faults without and with slabpool, side by side.

With slabpool, any broken promise makes the exit status 1. Without slabpool, results are only reported.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.exo.ring import Node, Ring, wait_until

TOKENS = 12
PROMPTS = [f"hello number {i} and more" for i in range(4)] + [f"another of three, the {i}" for i in range(3)]
ENTRIES = ("outstanding_requests", "buffered_token_output", "token_queues", "states")


class Report:
    """The results, by scene."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.wrong: list[str] = []

    def say(self, scene: str, side: str, text: str) -> None:
        """One line."""
        self.rows.append((scene, side, text))
        print(f"{side:9} {scene:28} {text}", flush=True)

    def expect(self, side: str, scene: str, condition: bool, text: str) -> None:
        """Report a result; with slabpool it also fails the run unless the condition holds."""
        self.say(scene, side, text)
        if side == "slabpool" and not condition:
            self.wrong.append(f"{scene}: {text}")


def kept(node: Node) -> dict[str, int]:
    """The node's counts that are not 0."""
    return {name: count for name, count in node.counts().items() if count}


def settle(ring: Ring) -> float | None:
    """Seconds until every node keeps nothing; None after a timeout."""
    with contextlib.suppress(TimeoutError):
        return wait_until(lambda: not any(kept(node) for node in ring.nodes), 10, "all counts are 0")
    return None


def show(ring: Ring) -> str:
    """What each node keeps."""
    return "; ".join(f"{node.name}: {kept(node) or 'nothing'}" for node in ring.nodes)


def compare(answers: list[Any], wanted: list[list[int]]) -> tuple[bool, str]:
    """Whether all tokens are as wanted, and a text with the number of right answers."""
    good = sum(answer.get("tokens") == tokens for answer, tokens in zip(answers, wanted, strict=True))
    errors = [answer["error"] for answer in answers if "error" in answer]
    text = f"{good} of {len(wanted)} answers are the reference's"
    return good == len(wanted), text + (f", errors: {errors}" if errors else "")


class Scenes:
    """The faults, on one ring."""

    def __init__(self, ring: Ring, wanted: list[list[int]], report: Report) -> None:
        self.ring = ring
        self.wanted = wanted
        self.report = report
        self.side = "slabpool" if ring.slabpool else "exo"
        self.first = ring.nodes[0]

    def _result(self, scene: str, good: bool, text: str) -> None:
        seconds = settle(self.ring) if self.ring.slabpool else 0.0
        clean = seconds is not None
        self.report.expect(self.side, scene, good and clean, f"{text}; kept: {show(self.ring)}")

    def sequential(self) -> None:
        """Prompts one after another, each with a new id."""
        answers, times = [], []
        for i, prompt in enumerate(PROMPTS[:4]):
            start = time.perf_counter()
            answers.append(self.first.generate(f"one-{i}", prompt))
            times.append(time.perf_counter() - start)
        good, text = compare(answers, self.wanted[:4])
        step = statistics.median(times[1:]) / TOKENS * 1e3
        self._result("one after another", good, f"{text}; {step:.0f} ms a token")

    def same_id(self) -> None:
        """The same id again and again."""
        answers = [self.first.generate("again", prompt, timeout=20) for prompt in PROMPTS[:3]]
        self._result("the same id, three times", *compare(answers, self.wanted[:3]))

    def at_once(self) -> None:
        """Three at once: one more than exo's LRU holds."""
        with ThreadPoolExecutor(3) as threads:
            futures = [
                threads.submit(self.first.generate, f"three-{i}", prompt)
                for i, prompt in enumerate(PROMPTS[4:7])
            ]
            most = 0
            while not all(future.done() for future in futures):
                most = max(most, self.first.counts().get("live", 0))
            answers = [future.result() for future in futures]
        good, text = compare(answers, self.wanted[4:7])
        in_pool = (
            f"; at most {most} bytes of KV in node {self.first.name}'s pool" if self.ring.slabpool else ""
        )
        self._result("three at once", good, text + in_pool)

    def through_http(self) -> None:
        """exo's own API, streaming and not."""
        answers = []
        for stream in (False, True):
            with urllib.request.urlopen(self.first.chat(PROMPTS[1], stream=stream), timeout=60) as answer:
                answers.append({"tokens": tokens_of(answer.read().decode())})
        self._result("through the HTTP API", *compare(answers, [self.wanted[1]] * 2))

    def client_leaves(self) -> None:
        """Clients that disconnect in the middle of an answer."""
        for stream in (True, False):
            self._hang_up(stream)
        answer = self.first.generate("after", PROMPTS[2])
        good, text = compare([answer], [self.wanted[2]])
        noticed = self.first.log.read_text().count(f"ends on node {self.first.name}: the client disconnected")
        self._result("two clients hang up", good and noticed == 2, f"{noticed} noticed; the next: {text}")

    def _hang_up(self, stream: bool) -> None:
        request = self.first.chat(PROMPTS[3], stream=stream)
        assert isinstance(request.data, bytes)
        with socket.create_connection(("127.0.0.1", self.first.api)) as client:
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(request.data)}\r\n\r\n"
            )
            client.sendall(head.encode() + request.data)
            if stream:
                client.recv(1)  # the answer has begun
            else:
                wait_until(lambda: bool(self.first.counts()["outstanding_requests"]), 10, "it has begun")

    def node_dies(self) -> None:
        """The node with the last layers is killed in the middle of an answer."""
        last = self.first.ask("/counts")["ring"][-1]
        victim = next(node for node in self.ring.nodes if node.name == last)
        self.ring.nodes.remove(victim)
        (left,) = self.ring.nodes
        start = time.monotonic()
        with urllib.request.urlopen(left.chat(PROMPTS[0], stream=True), timeout=120) as answer:
            answer.read(1)
            victim.process.kill()
            victim.process.wait()
            with contextlib.suppress(http.client.HTTPException):
                answer.read()
        seconds = time.monotonic() - start
        wait_until(lambda: left.ask("/counts")["ring"] == [left.name], 60, "the ring is one node")
        good, says = compare([left.generate("survivor", PROMPTS[1])], [self.wanted[1]])
        self._result(
            "a node is killed", good, f"its client got the error after {seconds:.1f} s; then alone: {says}"
        )


def tokens_of(text: str) -> list[int]:
    """The tokens in an answer of the API, streamed or not."""
    pieces = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]
    contents = [piece["choices"][0]["message"]["content"] for piece in pieces]
    return [int(token) for token in " ".join(contents).split()]


def reference(exo: Path, python: str) -> list[list[int]]:
    """Tokens of a single node without TinyJit, because under TinyJit all requests share the first one's
    cache."""
    with Ring(exo, python, ("alone",), False, TOKENS, {"JIT": "0"}) as ring:
        return [ring.nodes[0].generate(f"r{i}", prompt, 120)["tokens"] for i, prompt in enumerate(PROMPTS)]


def main() -> int:
    """Run everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exo", description=__doc__)
    parser.add_argument("--exo", type=Path, required=True, help="a checkout of exo at v0.0.15-alpha")
    parser.add_argument("--python", default=sys.executable, help="with exo's dependencies and slabpool")
    parser.add_argument("--only", choices=("exo", "slabpool"), help="one side")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    report = Report()
    wanted = reference(arguments.exo.resolve(), arguments.python)
    if len({tuple(tokens) for tokens in wanted}) != len(wanted):
        print("the reference gives the same tokens for different prompts: a comparison would prove nothing")
        return 1
    for slabpool in (False, True):
        if arguments.only in (None, "slabpool" if slabpool else "exo"):
            with Ring(arguments.exo.resolve(), arguments.python, ("a", "b"), slabpool, TOKENS) as ring:
                scenes = Scenes(ring, wanted, report)
                play: list[Callable[[], None]] = [
                    scenes.sequential,
                    scenes.same_id,
                    scenes.at_once,
                    scenes.through_http,
                    scenes.client_leaves,
                    scenes.node_dies,
                ]
                for scene in play:
                    try:
                        scene()
                    except Exception as error:  # recorded as the scene's result
                        name = scene.__name__.replace("_", " ")
                        report.expect(scenes.side, name, False, f"broke off: {type(error).__name__}: {error}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report.rows, indent=1))
    for wrong in report.wrong:
        print("NOT AS PROMISED:", wrong)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
