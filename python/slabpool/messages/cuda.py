"""Errors of the CUDA driver: what was attempted, what the driver said, and what to do."""

from __future__ import annotations

from typing import NoReturn

from slabpool.errors import DeviceLostError, DeviceUnavailableError, InvalidArgumentError, SlabpoolError

# Those of the driver's results that the caller can do something about.
_NOT_INITIALIZED = 3
_CAPTURED = 900
_THE_STREAMS = {
    201: "no context of this process",
    400: "no stream of this process",
    709: "gone with its context",
}


def cuda_failed(what: str, result: int, text: str, lost: bool) -> NoReturn:
    """Raises for a call that the driver refused.

    Parameters
    ----------
    what : str
        What was attempted: "copying 64 bytes to the host".
    result : int
        The driver's result.
    text : str
        The name of the result and the driver's text for it.
    lost : bool
        Whether the device is lost.
    """
    if lost:
        raise DeviceLostError(
            f"{what} failed: {text}. No further work on this GPU is possible in this process: restart it, "
            "and look for the kernel that failed (compute-sanitizer finds it)"
        )
    if result == _NOT_INITIALIZED:
        raise DeviceUnavailableError(f"{what} failed: {text}")
    if result == _CAPTURED:
        raise InvalidArgumentError(
            f"{what} failed: {text}. The stream is being captured into a graph, which would repeat this "
            "after the memory is returned; copy before or after the capture"
        )
    if result in _THE_STREAMS:
        raise InvalidArgumentError(
            f"{what} failed: {text}. If a stream was given, it is {_THE_STREAMS[result]}, or destroyed "
            "already"
        )
    raise SlabpoolError(f"{what} failed: {text}")
