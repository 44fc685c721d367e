"""Errors of a peer: references that it cannot open or acknowledge."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from slabpool._core.shared import PeerStatusCode
from slabpool.arguments.texts import show
from slabpool.errors import (
    ForkedPoolError,
    InvalidReferenceError,
    OwnerLostError,
    PoolClosedError,
    StaleReferenceError,
    UnknownDeviceError,
)

if TYPE_CHECKING:
    from slabpool._core.shared import Peer, TensorRef


def peer_failed(peer: Peer, status: PeerStatusCode, ref: TensorRef | None) -> NoReturn:
    """Raises for a reference that a peer cannot open or acknowledge."""
    if status == PeerStatusCode.CLOSED or ref is None:
        raise OwnerLostError(
            f"the owner of pool {show(peer.name)} has closed it or is gone; what device "
            f"{show(peer.device)} has open "
            "stays readable. attach() again once there is a new owner"
        )
    if status == PeerStatusCode.OTHER_POOL:
        raise InvalidReferenceError(
            f"{ref!r} is of another pool than {show(peer.name)}, which this peer is attached to, or of an "
            "earlier pool of this name; open it with a peer of the pool that made it"
        )
    if status == PeerStatusCode.OVER:
        raise StaleReferenceError(
            f"{ref!r}: its request is released and its memory may belong to another. A device must be named "
            "in devices=, and open a reference before it acknowledges"
        )
    if status == PeerStatusCode.ACKNOWLEDGED:
        raise StaleReferenceError(
            f"{ref!r}: device {show(peer.device)} has acknowledged this request (or was reported lost), "
            "so its "
            "memory may belong to another"
        )
    if status == PeerStatusCode.UNKNOWN_DEVICE:
        raise UnknownDeviceError(
            f"{ref!r}: device {show(peer.device)} was never named for this request. The owner names it in "
            "devices= when it opens the request, or with add_device()"
        )
    if status == PeerStatusCode.OUT_OF_RANGE:
        raise InvalidReferenceError(f"{ref!r} is outside the memory of pool {show(peer.name)}")
    raise InvalidReferenceError(
        f"{ref!r} was not made by the owner of pool {show(peer.name)}, or was changed on the way. Pass "
        "on the "
        "result of Request.ref() unchanged"
    )


def peer_unusable(peer: Peer, closed: bool) -> NoReturn:
    """Raises for a peer that is closed, or was attached by the parent of this process."""
    if closed:
        raise PoolClosedError(f"this peer of pool {show(peer.name)} is closed; attach() makes a new one")
    raise ForkedPoolError(
        f"the peer of pool {show(peer.name)} was inherited through fork; in this process its views may "
        "only be "
        "read. attach() in the process that is the device"
    )
