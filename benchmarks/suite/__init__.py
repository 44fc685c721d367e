"""All benchmarks by name, in the order of the report. One file per subject.

Benchmarks that need a GPU are listed separately: they run only when asked for.
"""

from __future__ import annotations

from benchmarks.harness.model import Benchmark
from benchmarks.suite import (
    ack,
    allocators,
    churn,
    create_drop,
    full,
    gpu_acks,
    gpu_allocate,
    gpu_decoder,
    gpu_request64,
    growing,
    growth,
    hand_over,
    native,
    numpy_handler,
    replay,
    request64,
    request_pattern,
    sequential,
    sessions,
    stats,
    transformers_generate,
)

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        create_drop.BENCHMARK,
        request_pattern.BENCHMARK,
        request64.BENCHMARK,
        allocators.BENCHMARK,
        numpy_handler.BENCHMARK,
        native.SAME_THREAD,
        native.TWO_THREADS,
        native.CROSS_THREAD,
        native.LIVE_SET,
        churn.BENCHMARK,
        replay.BENCHMARK,
        full.BENCHMARK,
        sequential.BENCHMARK,
        sessions.BENCHMARK,
        ack.BENCHMARK,
        hand_over.BENCHMARK,
        growing.BENCHMARK,
        growth.BENCHMARK,
        transformers_generate.BENCHMARK,
        stats.BENCHMARK,
    )
}

GPU_BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        gpu_allocate.BENCHMARK,
        gpu_request64.BENCHMARK,
        gpu_acks.BENCHMARK,
        gpu_decoder.BENCHMARK,
    )
}
