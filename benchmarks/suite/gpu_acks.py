"""gpu_acks: three ways for the host to learn that a stream has reached a point, on the bare driver.

slabpool records an event and queries it (csrc/slabpool/acks/from_streams.hpp). This shows whether that is the
best of the three on a machine.
"""

from __future__ import annotations

from benchmarks.harness.figures import ratio
from benchmarks.harness.model import Bar, Benchmark, Case, Effort, Group

GROUP = Group("64 KiB written between acks")
EVENT = "slabpool's: cuEventRecord, cuEventQuery"
HOST = "cuLaunchHostFunc"
WRITE = "cuStreamWriteValue64"
NONE = "control: no ack"


def _cases(effort: Effort) -> list[Case]:
    ways = ((EVENT, "event"), (HOST, "host_function"), (WRITE, "write_value"), (NONE, "none"))
    return [Case(GROUP, name, "native", "ack", heap=way, program="gpu") for name, way in ways]


def _bars(effort: Effort) -> list[Bar]:
    return [
        Bar(f"{metric}: event over {other}", ratio(GROUP, other, of=EVENT, metric=metric), "at most", 1.0)
        for metric in ("time", "until the host knows")
        for other in (HOST, WRITE)
    ]


BENCHMARK = Benchmark(
    "gpu_acks",
    "GPU: how the host learns that a stream has reached a point",
    _cases,
    _bars,
    (
        "`time`: work and an ack behind it, many in a row, while the host polls; at most 256 are in flight. "
        "Minus the control's time, it is the cost of an ack. `until the host knows`: a single ack, from the "
        "call on, while the host polls all the time. `the call`: what the caller pays at once.",
    ),
)
