"""The arguments of `slabpool.Pool`, checked before a pool is made."""

from typing import NamedTuple

from slabpool.arguments.memory_kinds import Memory, parse_memory
from slabpool.arguments.names import plain_name
from slabpool.arguments.sizes import parse_size
from slabpool.arguments.texts import show
from slabpool.errors import InvalidArgumentError, InvalidTypeError

_HUGE_FROM = 64 << 20  # bytes from which huge pages are the default


class Options(NamedTuple):
    """The options of a pool, as the core takes them."""

    capacity: int
    memory: Memory
    name: str | None
    scrub: bool
    debug: int
    events: int
    huge_pages: bool
    numa_node: int  # -1: any


def parse_options(
    capacity: object,
    memory: object,
    name: object,
    scrub: object,
    debug: object,
    events: object,
    huge_pages: object,
    numa_node: object,
) -> Options:
    """Raises InvalidArgumentError or InvalidTypeError, which name the value and what is allowed."""
    name, debug, events, numa_node = map(plain_name, (name, debug, events, numa_node))
    size = parse_size(capacity, "capacity", least=16384, most=1 << 42)
    kind = parse_memory(memory)
    if str(kind) != "host" and (huge_pages or numa_node is not None):
        raise InvalidArgumentError(
            f"huge_pages and numa_node are for memory='host', got memory={show(memory)}: {_why_not(kind)}"
        )
    if not isinstance(scrub, str) or scrub not in ("never", "release"):
        raise InvalidArgumentError(f"scrub must be 'never' or 'release', got {show(scrub)}")
    if not isinstance(debug, (int, float)) or debug not in (0, 1, 2):
        raise InvalidArgumentError(f"debug must be 0, 1 or 2, got {show(debug)}")
    if debug and kind.kind == "device":
        raise InvalidArgumentError(
            f"debug must be 0 with memory={show(memory)}, got {show(debug)}: guards and poison are "
            "written and read "
            "by the host, which cannot access device memory. Debug the same code with memory='host', "
            "'pinned' or 'managed:N'"
        )
    if not isinstance(events, int) or not 0 <= events <= 1 << 24:
        raise InvalidArgumentError(f"events must be an int from 0 to {1 << 24}, got {show(events)}")
    if numa_node is not None and (not isinstance(numa_node, int) or not 0 <= numa_node < 1 << 16):
        raise InvalidArgumentError(
            f"numa_node must be an int from 0 to {(1 << 16) - 1}, got {show(numa_node)}"
        )
    if name is not None and not isinstance(name, str):
        raise InvalidTypeError(f"name must be a str, got {show(name)}")
    return Options(
        capacity=size,
        memory=kind,
        name=name,
        scrub=scrub == "release",
        debug=int(debug),
        events=events,
        huge_pages=size >= _HUGE_FROM if huge_pages is None else bool(huge_pages),
        numa_node=-1 if numa_node is None else numa_node,
    )


def _why_not(memory: Memory) -> str:
    if memory.kind == "device":
        return "device memory is not host memory"
    if memory.kind == "pinned":
        return "pinned memory is allocated near its device, 'pinned:N'"
    if memory.kind == "managed":
        return "the CUDA driver decides where managed memory is"
    return "shared memory is allocated page by page as it is committed"
