"""cpp_same_thread, cpp_two_threads, cpp_cross_thread and cpp_live_set_1000: the core against C allocators.

The contenders run the same C++ workload (benchmarks/cpp): slabpool's core, the malloc of glibc, each
preloaded malloc, and the two floors, which only push and pop a list.
"""

from __future__ import annotations

from benchmarks.harness.figures import per_round, ratio, value
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Figure, Group, Result

THREAD_LIST = "floor: thread-local list"
OWNER_LIST = "floor: owner list + remote list"
C_ALLOCATORS = ("glibc", "mimalloc", "jemalloc", "tcmalloc")


def contenders(workload: str, group: Group, floors: tuple[str, ...]) -> list[Case]:
    """slabpool, the floors and the four C allocators in one workload."""
    args = {} if group.nbytes is None else {"bytes": group.nbytes}
    cases = [Case(group, OURS, "native", workload, args, heap="slabpool")]
    heaps = {THREAD_LIST: "thread-list", OWNER_LIST: "owner-list"}
    cases += [Case(group, floor, "native", workload, args, heap=heaps[floor]) for floor in floors]
    cases.append(Case(group, "glibc", "native", workload, args, heap="malloc:libc.so"))
    for name in C_ALLOCATORS[1:]:
        cases.append(Case(group, name, "native", workload, args, heap=f"malloc:{name}", preload=name))
    return cases


def best_of(group: Group, metric: str = "time") -> Figure:
    """slabpool's metric divided by that of the fastest C allocator that took part."""

    def figure(result: Result) -> list[float] | None:
        ours = result.outcome(group, OURS)
        others = [o for name in C_ALLOCATORS if (o := result.outcome(group, name)) is not None]
        if ours is None or not others:
            return None
        fastest = [min(values) for values in zip(*(per_round(o, metric) for o in others), strict=True)]
        return [a / b for a, b in zip(per_round(ours, metric), fastest, strict=True)]

    return figure


def slowest_over_fastest(groups: list[Group]) -> Figure:
    """slabpool's time at its slowest size divided by that at its fastest."""

    def figure(result: Result) -> list[float] | None:
        outcomes = [result.outcome(group, OURS) for group in groups]
        rounds = [per_round(o, "time") for o in outcomes if o is not None]
        if len(rounds) != len(groups):
            return None
        return [max(values) / min(values) for values in zip(*rounds, strict=True)]

    return figure


# ---- allocate and free in one thread

SAME = [Group("same thread, untouched", n << 10) for n in (4, 64, 256, 1024, 4096, 16384, 65536)]


def _same_cases(effort: Effort) -> list[Case]:
    return [c for group in SAME for c in contenders("same_thread", group, (THREAD_LIST, OWNER_LIST))]


def _same_bars(effort: Effort) -> list[Bar]:
    bars = [Bar(f"{g.size}: time over the owner list's", ratio(g, OWNER_LIST), "at most", 2.0) for g in SAME]
    bars.append(Bar("slowest size over fastest", slowest_over_fastest(SAME), "at most", 1.1))
    bars += [
        Bar(f"{g.size}: time over the fastest C allocator's", best_of(g), "at most", 1.0) for g in SAME[1:]
    ]
    return bars


SAME_THREAD = Benchmark(
    "cpp_same_thread",
    "C++: allocate and free one block, same thread",
    _same_cases,
    _same_bars,
    ("Memory is not touched. The same block is reused each time, so all caches are hot.",),
)

# ---- two threads, each its own

TWO = [Group("two threads, each its own", n << 10) for n in (4, 1024)]


def _two_cases(effort: Effort) -> list[Case]:
    return [c for group in TWO for c in contenders("two_threads", group, (THREAD_LIST, OWNER_LIST))]


def _two_bars(effort: Effort) -> list[Bar]:
    return [Bar(f"{g.size}: throughput over one thread's", value(g, "scaling"), "at least", 1.9) for g in TWO]


TWO_THREADS = Benchmark(
    "cpp_two_threads",
    "C++: two threads, each allocating and freeing its own",
    _two_cases,
    _two_bars,
    (
        "`time` is one thread's time per operation while the other runs, `alone` without it; `scaling` is "
        "the throughput of both divided by that of one. The floors share nothing: what they miss of 2.00 is "
        "due to the machine.",
    ),
)

# ---- allocate here, free there

CROSS = [Group("allocate here, free there", n << 10) for n in (4, 64, 1024, 16384)]
RING = "the ring alone"


def _cross_cases(effort: Effort) -> list[Case]:
    cases = [c for group in CROSS for c in contenders("cross_thread", group, (OWNER_LIST,))]
    return [*cases, Case(CROSS[0], RING, "native", "cross_thread", {"bytes": CROSS[0].nbytes}, heap="none")]


def _cross_bars(effort: Effort) -> list[Bar]:
    bars = [Bar(f"{g.size}: time over the owner list's", ratio(g, OWNER_LIST), "at most", 1.5) for g in CROSS]
    bars += [Bar(f"{g.size}: time over the fastest C allocator's", best_of(g), "at most", 1.0) for g in CROSS]
    return bars


CROSS_THREAD = Benchmark(
    "cpp_cross_thread",
    "C++: allocate in one thread, free in another",
    _cross_cases,
    _cross_bars,
    (
        "Blocks go through a ring of 256; its cost is in every figure, and is shown alone too. The time is "
        "that of the slower of the two threads.",
    ),
)

# ---- a live set of 1,000

LIVE = [
    Group("1,000 live, 4 KiB to 64 MiB, any multiple of 4 KiB"),
    Group("1,000 live, 4 KiB to 64 MiB, powers of two"),
]


def _live_cases(effort: Effort) -> list[Case]:
    cases = contenders("live_set", LIVE[0], (THREAD_LIST, OWNER_LIST))
    return cases + contenders("live_set_powers", LIVE[1], (THREAD_LIST, OWNER_LIST))


def _live_bars(effort: Effort) -> list[Bar]:
    bars = [
        Bar(f"{g.label}: time over the thread-local list's", ratio(g, THREAD_LIST), "at most", 5.0)
        for g in LIVE
    ]
    return bars + [
        Bar(f"{g.label}: time over the fastest C allocator's", best_of(g), "at most", 1.0) for g in LIVE
    ]


LIVE_SET = Benchmark(
    "cpp_live_set_1000",
    "C++: one of 1,000 live tensors replaced by one of another size",
    _live_cases,
    _live_bars,
    (
        "Sizes are log-uniform. With any multiple of 4 KiB almost no large size occurs twice, and the "
        "floor, which keeps a list for every one of 16,384 sizes and returns nothing, holds many times "
        "what is live; of powers of two there are 15, as of an engine whose tensors have a few shapes.",
    ),
)
