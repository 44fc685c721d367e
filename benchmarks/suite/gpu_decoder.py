"""gpu_decoder: a transformers decoder on torch, with and without the pool under its memory.

The same model with random weights and the same prompts, 2,000 requests one after another. Tokens must be the
same. Memory must stay flat: the memory in use on the device after the first tenth is compared with the most
later.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from typing import Any

from benchmarks.harness.figures import per_round, ratio, value
from benchmarks.harness.model import (
    OURS,
    Bar,
    Benchmark,
    Case,
    Effort,
    Figure,
    Group,
    Metric,
    Metrics,
    Result,
)
from benchmarks.suite import gpu

GROUP = Group("2,000 requests, 64 + 8 tokens")
MEM_POOL = f"{OURS}, a MemPool each request"
TORCH = "torch's caching allocator"
PROMPT, NEW = 64, 8


def _model(torch: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval().to(torch.bfloat16).to(f"cuda:{gpu.DEVICE}")


def measure(pool: str, requests: int) -> Metrics:
    """`requests` generations; `pool` as in `gpu.torch_on`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch, made = gpu.torch_on(pool)
    if pool == "mem_pool":
        import slabpool.torch
    model = _model(torch)
    options = {"max_new_tokens": NEW, "do_sample": False}

    def one(number: int) -> Any:
        # Lengths differ, as users' do: memory that fits one request seldom fits the next.
        length = PROMPT - number % 17
        prompt = (torch.arange(length, device=f"cuda:{gpu.DEVICE}") * 31 + number)[None] % 4095 + 1
        with contextlib.ExitStack() as stack:
            if made is not None:
                stack.enter_context(stack.enter_context(made.request(f"chat-{number}")).activate())
                if pool == "mem_pool":
                    stack.enter_context(slabpool.torch.mem_pool(made))
            # No tensor may outlive the block, because its segment would stay until torch empties its cache.
            return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[
                0, length:
            ].tolist()

    one(0)
    crc, used = 0, []
    tenth = max(1, requests // 10)
    walls = []
    for part in range(10):
        start = time.perf_counter()
        for number in range(part * tenth, (part + 1) * tenth):
            crc = zlib.crc32(repr(one(number)).encode(), crc)
        torch.cuda.synchronize()
        walls.append((time.perf_counter() - start) / (tenth * NEW))
        free, total = torch.cuda.mem_get_info(gpu.DEVICE)
        used.append((total - free) / (1 << 20))
    found = {
        "time": Metric("s", walls),  # per new token, the prompt's share included
        "tokens a second": Metric("", [1 / wall for wall in walls]),
        "tokens": Metric("", [float(crc)]),  # a checksum
        "device memory": Metric("MiB", used),
        "growth after the first tenth": Metric("MiB", [max(used[1:]) - used[0]]),
    }
    if made is not None and made.stats().allocations == 0:
        raise AssertionError("the pool was never called: torch used another allocator")
    return found


def _cases(effort: Effort) -> list[Case]:
    here = "benchmarks.suite.gpu_decoder:measure"
    requests = 40 if effort.quick else 2000
    return [
        Case(GROUP, name, "measured", here, {"pool": pool, "requests": requests}, peer="transformers")
        for name, pool in ((OURS, "global"), (MEM_POOL, "mem_pool"), (TORCH, ""))
    ]


def _differing(ours: str) -> Figure:
    """1 for each round whose tokens differ from those of torch without the pool."""

    def figure(result: Result) -> list[float] | None:
        mine, theirs = result.outcome(GROUP, ours), result.outcome(GROUP, TORCH)
        if mine is None or theirs is None:
            return None
        pairs = zip(per_round(mine, "tokens"), per_round(theirs, "tokens"), strict=True)
        return [float(a != b) for a, b in pairs]

    return figure


def _bars(effort: Effort) -> list[Bar]:
    bars = []
    for name in (OURS, MEM_POOL):
        grown = value(GROUP, "growth after the first tenth", name)
        faster = ratio(GROUP, TORCH, of=name, metric="tokens a second")
        bars += [
            Bar(f"{name}: other tokens than {TORCH}", _differing(name), "at most", 0, ".0f"),
            Bar(f"{name}: tokens a second over {TORCH}", faster, "at least", 1.0),
            Bar(f"{name}: growth after the first tenth", grown, "at most", 0, ".0f", " MiB"),
        ]
    return bars


BENCHMARK = Benchmark(
    "gpu_decoder",
    "GPU: a transformers decoder on torch, 2,000 requests in a row",
    _cases,
    _bars,
    (
        "A Llama-shaped model with random weights (8 layers, 1,024 wide, bfloat16), greedy, 8 new tokens "
        "per request, prompts of 48 to 64 tokens. `tokens` is a checksum over all of them. `device memory` "
        "is what the device reports as in use after each tenth, including other processes.",
    ),
)
