"""References: what they carry across, and that each opens only the bytes it was made for."""

from __future__ import annotations

import pickle
import random
import zlib

import numpy as np
import pytest

import slabpool
from slabpool import (
    Ack,
    InvalidArgumentError,
    InvalidReferenceError,
    InvalidTypeError,
    RequestClosedError,
    StaleReferenceError,
    TensorRef,
    UnknownDeviceError,
)

DTYPES = ["u1", "<f2", ">i8", "c16", "S5", "U3", "M8[ns]", "?", "V6"]
STRUCTURE = np.dtype([("token", "<u4"), ("logit", "<f4", (2,))], align=True)


@pytest.fixture
def peer(shared_pool: slabpool.Pool):  # type: ignore[no-untyped-def]
    """A peer attached as "gpu0", in this process."""
    with slabpool.attach("engine", device="gpu0") as peer:
        yield peer


@pytest.fixture
def req(shared_pool: slabpool.Pool):  # type: ignore[no-untyped-def]
    """An open request that waits for "gpu0" and "gpu1"."""
    with shared_pool.request("r", devices=["gpu0", "gpu1"]) as req:
        yield req


@pytest.mark.parametrize("dtype", [*DTYPES, STRUCTURE], ids=str)
def test_any_dtype_of_plain_values(peer: slabpool.Peer, req: slabpool.Request, dtype: object) -> None:
    x = req.zeros((3, 4), np.dtype(dtype))  # type: ignore[call-overload]
    x.view("u1")[:] = np.random.default_rng(0).integers(0, 2, x.nbytes, "u1").reshape(x.view("u1").shape)
    ref = pickle.loads(pickle.dumps(req.ref(x)))
    y = peer.open(ref)
    assert y.dtype == x.dtype and y.shape == x.shape
    assert y.tobytes() == x.tobytes()


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x[1:],
        lambda x: x[:, ::2],
        lambda x: x[::-1],
        lambda x: x[::-1, :, ::-3],
        lambda x: x.T,
        lambda x: x[1, 2, 3:4],
        lambda x: x[2:2],
        lambda x: x[..., None],
        lambda x: x.reshape(-1)[5:6].reshape(()),
        lambda x: np.broadcast_to(x[0, 0, :1], (4, 7)),
        lambda x: x.view("u1")[:, :, 1:],
    ],
)
def test_any_view(peer: slabpool.Peer, req: slabpool.Request, cut) -> None:  # type: ignore[no-untyped-def]
    x = req.empty((4, 5, 6), "f8")
    x[:] = np.arange(120).reshape(4, 5, 6)
    x = cut(x)
    ref = TensorRef.from_bytes(req.ref(x).to_bytes())
    y = peer.open(ref)
    assert (ref.shape, ref.strides, ref.dtype) == (x.shape, x.strides, x.dtype)
    assert (y.shape, y.strides) == (x.shape, x.strides)
    np.testing.assert_array_equal(x, y)
    assert not y.flags.writeable


def test_a_layout_s_tensors(peer: slabpool.Peer, req: slabpool.Request) -> None:
    t = req.allocate(slabpool.Layout({"k": ((4, 8), "f2"), "v": ((4, 8), "f2")}), zero=True)
    t.v[:] = 3
    assert (peer.open(req.ref(t.v)) == 3).all()
    assert (peer.open(req.ref(t.k)) == 0).all()


def test_a_request_with_a_reserve(shared_pool: slabpool.Pool, peer: slabpool.Peer) -> None:
    with shared_pool.request("r", devices=["gpu0"], reserve="1MiB") as req:
        arrays = [req.full(n, n % 251, "u1") for n in (1, 100, 5000, 200_000)]
        refs = [req.ref(x[-3:]) for x in arrays]
        for x, ref in zip(arrays, refs, strict=True):
            np.testing.assert_array_equal(peer.open(ref), x[-3:])
        del arrays, x
    assert peer.ack(refs[0]) is Ack.RELEASED
    assert (shared_pool.stats().live, shared_pool.stats().reserved) == (0, 0)


def test_writes_of_either_side_are_seen_by_the_other(peer: slabpool.Peer, req: slabpool.Request) -> None:
    x = req.zeros(10)
    ref = req.ref(x)
    read, write = peer.open(ref), peer.open(ref, writable=True)
    write[3] = 7
    assert x[3] == read[3] == 7
    x[4] = 8
    assert read[4] == write[4] == 8
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        read.flags.writeable = True


def test_a_view_outlives_everything_without_a_fault(shared_pool: slabpool.Pool, peer: slabpool.Peer) -> None:
    with shared_pool.request("r", devices=["gpu0"]) as req:
        x = req.full(1 << 20, 3, "u1")
        ref = req.ref(x)
    y, z = peer.open(ref), peer.open(ref, writable=True)
    peer.ack(ref)
    assert (y == 3).all()  # the owner's view keeps the memory
    del x
    shared_pool.trim()
    assert int(y.sum()) == 0  # returned to the system: it reads as zeros, without a signal
    z[:] = 1
    peer.close()
    shared_pool.close()
    assert y.shape == z.shape == (1 << 20,)
    assert int(y.sum()) == 0  # what was written without holding the request went with the pool's memory
    z[:] = 1
    assert (y == 1).all()


def test_it_compares_prints_and_hashes(req: slabpool.Request) -> None:
    x = req.zeros((2, 3))
    ref, same, other = req.ref(x), req.ref(x), req.ref(x[1:])
    assert ref == same != other
    assert hash(ref) == hash(same)
    assert {ref, same, other} == {ref, other}
    assert ref != 3
    assert (
        repr(ref) == f"<TensorRef (2, 3) float64: 48 bytes at {ref_offset(ref)}, generation {req.generation}>"
    )
    assert ref.nbytes == 48
    assert len(ref.to_bytes()) < 120


def ref_offset(ref: TensorRef) -> int:
    """Its offset in the pool's memory, from its repr."""
    return int(repr(ref).split(" at ")[1].split(",")[0])


def test_changed_bytes_are_no_reference(req: slabpool.Request) -> None:
    raw = req.ref(req.zeros((2, 3), STRUCTURE)).to_bytes()
    for length in range(len(raw)):
        with pytest.raises(InvalidReferenceError):
            TensorRef.from_bytes(raw[:length])
    with pytest.raises(InvalidReferenceError):
        TensorRef.from_bytes(raw + b"\0")
    for at in range(len(raw)):
        for bit in range(8):
            with pytest.raises(InvalidReferenceError):
                TensorRef.from_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
    with pytest.raises(InvalidTypeError, match="a reference is bytes"):
        TensorRef.from_bytes("text")  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match=r"made by Request.ref"):
        TensorRef()


def reseal(raw: bytes) -> bytes:
    """The bytes with a right checksum, as an attacker who knows the format can make them."""
    return raw + zlib.crc32(raw).to_bytes(4, "little")


def test_forged_references_open_nothing(
    shared_pool: slabpool.Pool, peer: slabpool.Peer, req: slabpool.Request
) -> None:
    x = req.full(1000, 1.0)
    secret = shared_pool.request("other", devices=["gpu0"])
    secret.full(1000, 2.0)
    raw = req.ref(x).to_bytes()[:-4]
    rng = random.Random(1)
    opened = refused = 0
    for _ in range(20000):
        forged = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            forged[rng.randrange(4, len(forged))] = rng.randrange(256)
        if forged == raw:
            continue
        try:
            ref = TensorRef.from_bytes(reseal(bytes(forged)))
        except InvalidReferenceError:
            refused += 1
            continue
        try:
            y = peer.open(ref)
        except (InvalidReferenceError, UnknownDeviceError):
            refused += 1
            continue
        # The change affects how the bytes are interpreted, never which bytes are opened.
        opened += 1
        assert y.nbytes == 0 or set(y.tobytes()) <= set(x.tobytes())
    assert refused > 15000
    secret.close()


def test_random_bytes_are_refused(peer: slabpool.Peer) -> None:
    rng = random.Random(2)
    for _ in range(5000):
        raw = b"SPR\x01" + rng.randbytes(rng.randrange(0, 200))
        with pytest.raises(InvalidReferenceError):
            TensorRef.from_bytes(reseal(raw))


def test_a_reference_of_another_pool(peer: slabpool.Peer) -> None:
    with slabpool.Pool("1MiB", memory="shared", name="other") as other, other.request("r", ["gpu0"]) as req:
        ref = req.ref(req.zeros(10))
        with pytest.raises(InvalidReferenceError, match="is of another pool than 'engine'"):
            peer.open(ref)
        with pytest.raises(InvalidReferenceError, match="is of another pool than 'engine'"):
            peer.ack(ref)
        req.ack("gpu0")


def test_a_reference_of_a_request_that_is_over(shared_pool: slabpool.Pool, peer: slabpool.Peer) -> None:
    with shared_pool.request("r", devices=["gpu0"]) as req:
        ref = req.ref(req.zeros(10))
    req.ack("gpu0")
    for _ in range(2):
        with pytest.raises(StaleReferenceError, match="its request is released"):
            peer.open(ref)
        assert peer.ack(ref) is Ack.LATE
        # The next request has the same slot and most likely the same bytes.
        again = shared_pool.request("r", devices=["gpu0"])
        again.zeros(10)
    with pytest.raises(RequestClosedError):
        req.ref()
    for record in shared_pool.requests():
        assert record.pending == {"gpu0"}  # the late acks did not count for it


def test_a_reference_after_the_device_s_own_ack(peer: slabpool.Peer, req: slabpool.Request) -> None:
    ref = req.ref(req.zeros(10))
    assert peer.ack(ref) is Ack.PENDING
    with pytest.raises(StaleReferenceError, match="'gpu0' has acknowledged this request"):
        peer.open(ref)
    assert req.pending == {"gpu1"}  # the owner has counted the ack
    with pytest.raises(StaleReferenceError, match="has acknowledged"):
        peer.open(ref)


def test_a_reference_of_a_request_that_does_not_name_the_device(
    shared_pool: slabpool.Pool, peer: slabpool.Peer
) -> None:
    with shared_pool.request("r", devices=["gpu1"]) as req:
        ref = req.ref(req.zeros(10))
        with pytest.raises(UnknownDeviceError, match="'gpu0' was never named"):
            peer.open(ref)
        with pytest.raises(UnknownDeviceError, match="'gpu0' was never named"):
            peer.ack(ref)
        req.add_device("gpu0")
        assert peer.open(ref).shape == (10,)
        assert peer.ack(ref) is Ack.PENDING


def test_a_reference_to_an_array_outside_the_request(
    shared_pool: slabpool.Pool, req: slabpool.Request
) -> None:
    other = shared_pool.request("other")
    for array in (np.zeros(3), shared_pool.zeros(3), other.zeros(3), other.zeros(1 << 20)[5:]):
        with pytest.raises(InvalidArgumentError, match="is not in the memory of request 'r'"):
            req.ref(array)
    with pytest.raises(InvalidTypeError, match="an array of the request, got list"):
        req.ref([1, 2])  # type: ignore[arg-type]
    other.close()
    with (
        slabpool.Pool("1MiB") as private,
        private.request("r") as mine,
        pytest.raises(InvalidArgumentError, match="is private to this process"),
    ):
        mine.ref(mine.zeros(3))


def test_a_reference_to_a_view_that_outlived_its_request(shared_pool: slabpool.Pool) -> None:
    with shared_pool.request("r") as req:
        x = req.zeros(10)
    with pytest.raises(RequestClosedError):
        req.ref(x)
    with shared_pool.request("r") as later, pytest.raises(InvalidArgumentError, match="is not in the memory"):
        later.ref(x)


def test_objects_that_are_no_reference(peer: slabpool.Peer) -> None:
    for call in (peer.open, peer.ack):
        for thing in (None, b"bytes", 3, peer):
            with pytest.raises(InvalidTypeError, match="must be a TensorRef"):
                call(thing)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="attach where it is needed"):
        pickle.dumps(peer)
