"""transformers_generate: `generate` with a cache in a request's memory, and with the library's own cache.

The same model with random weights, the same prompt, the same tokens (checked). torch runs one thread, so that
other work on the machine disturbs less. Peak memory is the most by which the process grew during `generate`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.figures import ratio
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group, Metric, Metrics
from benchmarks.suite.growing import PeakMemory

DYNAMIC = "transformers DynamicCache"
STATIC = "transformers StaticCache"


@dataclass(frozen=True, slots=True)
class Work:
    """The shape of a model, and the tokens it is asked for."""

    name: str
    batch: int
    prompt: int
    new: int
    window: int | None = None
    dtype: str = "float32"
    heads: int = 8
    kv_heads: int = 4
    layers: int = 4

    @property
    def group(self) -> Group:
        return Group(self.name)


WORKS = {
    work.name: work
    for work in (
        Work("short: 1 sequence, 32 + 128 tokens", 1, 32, 128),
        Work("long: 1 sequence, 2,048 + 128 tokens", 1, 2048, 128),
        Work("batch: 4 sequences, 512 + 64 tokens", 4, 512, 64),
        Work("growth: 8 sequences, 16 + 496 tokens", 8, 16, 496),
        Work("window of 512: 1 sequence, 2,048 + 128 tokens", 1, 2048, 128, window=512),
        Work("bfloat16: 1 sequence, 2,048 + 64 tokens", 1, 2048, 64, dtype="bfloat16"),
    )
}


def _model(work: Work) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64 * work.heads,
        "intermediate_size": 128 * work.heads,
        "num_hidden_layers": work.layers,
        "num_attention_heads": work.heads,
        "num_key_value_heads": work.kv_heads,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    if work.window is None:
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    else:
        config = transformers.MistralConfig(**shape, sliding_window=work.window)
        made = transformers.MistralForCausalLM(config)
    return made.eval().to(getattr(torch, work.dtype))


def measure(contender: str, name: str, shorter: int) -> Metrics:
    """One run to warm up, then three."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    import slabpool
    import slabpool.transformers  # imported before memory is measured

    work = WORKS[name]
    torch.set_num_threads(1)
    model = _model(work)
    new = work.new // shorter
    prompt = torch.randint(2, 512, (work.batch, work.prompt // shorter))
    options = {"max_new_tokens": new, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    pool = slabpool.Pool("1GiB")

    def run(contender: str = contender) -> Any:
        if contender == DYNAMIC:
            return model.generate(prompt, **options)
        if contender == STATIC:
            cache = transformers.StaticCache(model.config, max_cache_len=prompt.shape[1] + new)
            return model.generate(prompt, past_key_values=cache, **options)
        with pool.request("chat-42") as request:
            cache = slabpool.transformers.SlabCache(request, model.config, limit=prompt.shape[1] + new)
            tokens = model.generate(prompt, past_key_values=cache, **options)
            cache.close()
            return tokens

    memory = PeakMemory()
    run()
    peak = memory.kib()
    walls, processor = [], []
    for _ in range(1 if shorter > 1 else 3):
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = run()
        processor.append((time.process_time() - cpu) / new)
        walls.append((time.perf_counter() - wall) / new)
    if pool.stats().live:
        raise AssertionError("memory did not come back")
    if not torch.equal(tokens, run(DYNAMIC)):
        raise AssertionError(f"{contender} generated other tokens than {DYNAMIC}")
    return {
        "time": Metric("s", walls),  # per token of each sequence, the prompt's share included
        "processor time": Metric("s", processor),
        "tokens a second": Metric("", [work.batch / wall for wall in walls]),
        "peak memory": Metric("KiB", [peak]),
    }


def _cases(effort: Effort) -> list[Case]:
    here = "benchmarks.suite.transformers_generate:measure"
    return [
        Case(
            work.group,
            contender,
            "measured",
            here,
            {"contender": contender, "name": work.name, "shorter": 8 if effort.quick else 1},
            peer="transformers",
        )
        for work in WORKS.values()
        for contender in (OURS, DYNAMIC, STATIC)
    ]


def _bars(effort: Effort) -> list[Bar]:
    bars = []
    for name, work in WORKS.items():
        short = name.partition(":")[0]
        faster = ratio(work.group, DYNAMIC, metric="tokens a second")
        bars.append(Bar(f"{short}: tokens a second over {DYNAMIC}", faster, "at least", 1.0))
        if work.new > 8 * work.prompt:  # else activations dominate the peak, whatever the cache
            peak = ratio(work.group, DYNAMIC, metric="peak memory")
            bars.append(Bar(f"{short}: peak memory over {DYNAMIC}", peak, "at most", 1.0))
    return bars


BENCHMARK = Benchmark(
    "transformers_generate",
    "transformers: generate with a cache in a request's memory",
    _cases,
    _bars,
    (
        "Llama-shaped models with random weights (4 layers, 8 heads, 4 of keys and values, head dimension "
        "64), Mistral-shaped for the window; one thread of torch. `time` is a whole `generate` divided by "
        "its new tokens, so it includes the prompt's share; `processor time` is the same without the time "
        "of other processes. `peak memory` is of the first `generate` of the process. All contenders "
        "generate the same tokens, which is checked.",
    ),
)
