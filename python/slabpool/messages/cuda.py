"""Turns an error of the CUDA driver into the exception a person can act on. Called on failure only."""

from __future__ import annotations

from typing import NoReturn

from slabpool.errors import DeviceLostError, DeviceUnavailableError, InvalidArgumentError, SlabpoolError

# Of the driver's results, those that the caller can do something about.
_NOT_INITIALIZED = 3
_CAPTURED = 900
_THE_STREAMS = {
    201: "no context of this process",
    400: "no stream of this process",
    709: "gone with its context",
}


def failed(what: str, result: int, text: str, lost: bool) -> NoReturn:
    """Raise for a call that the driver refused.

    Parameters
    ----------
    what : str
        What was to be done, for the message: "copying 64 bytes to the host".
    result : int
        The driver's.
    text : str
        Its name and what it says.
    lost : bool
        Whether the device is lost by it.
    """
    if lost:
        raise DeviceLostError(
            f"{what} failed: {text}. Nothing on this GPU works any more in this process: start it anew, and "
            "look for the kernel that failed (compute-sanitizer finds it)"
        )
    if result == _NOT_INITIALIZED:
        raise DeviceUnavailableError(f"{what} failed: {text}")
    if result == _CAPTURED:
        raise InvalidArgumentError(
            f"{what} failed: {text}. The stream is being captured into a graph, which would do this again "
            "when nobody keeps the memory any more; copy before or after the capture"
        )
    if result in _THE_STREAMS:
        raise InvalidArgumentError(
            f"{what} failed: {text}. If a stream was given, it is {_THE_STREAMS[result]}, or destroyed "
            "already"
        )
    raise SlabpoolError(f"{what} failed: {text}")
