"""torch tensors over pool memory: nothing is copied; memory comes back with the last view and the request."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import slabpool

if os.environ.get("SLABPOOL_TESTS_REQUIRE_ALL"):
    torch = importlib.import_module("torch")
else:
    torch = pytest.importorskip("torch", reason="needs the Python module torch")
import slabpool.torch as st

DTYPES = sorted(
    (
        dtype
        for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
        if not str(dtype).startswith(("torch.q", "torch.bits"))
    ),
    key=str,
)
#: Dtypes of one byte or less; torch itself cannot copy the others.
COPIED = (torch.bool, torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.fixture
def pool() -> Iterator[slabpool.Pool]:
    """A pool that must have all of its memory back at the end."""
    with slabpool.Pool("16MiB", name="t") as pool:
        yield pool
        gc.collect()
        assert pool.stats().live == pool.stats().retained == 0


# ---- making


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_of_torch_has_pool_memory(pool: slabpool.Pool, dtype: Any) -> None:
    tensor = st.empty(pool, (2, 3, 4), dtype=dtype)
    assert (tensor.dtype, tuple(tensor.shape), tensor.stride()) == (dtype, (2, 3, 4), (12, 4, 1))
    assert tensor.is_contiguous() and not tensor._is_view() and tensor.device.type == "cpu"
    assert tensor.untyped_storage().nbytes() == 24 * dtype.itemsize
    assert pool.stats().live == -(-24 * dtype.itemsize // 64) * 64
    zeros = st.zeros(pool, [5], dtype=dtype)
    assert bytes(zeros.untyped_storage()) == bytes(5 * dtype.itemsize)
    if dtype.itemsize > 1 or dtype in COPIED:
        copy = st.copy(pool, zeros)
        assert (copy.dtype, copy.shape) == (dtype, zeros.shape) and copy.data_ptr() != zeros.data_ptr()
    assert st.empty(pool, (), dtype=dtype).shape == ()
    assert st.empty(pool, (0, 3), dtype=dtype).shape == (0, 3)


def test_arguments_are_those_of_the_pool(pool: slabpool.Pool) -> None:
    assert st.empty(pool, 3).dtype == torch.get_default_dtype()
    assert st.empty(pool, torch.Size([2, 2])).shape == (2, 2)
    assert st.empty(pool, np.int64(3), align=4096).data_ptr() % 4096 == 0
    assert st.full(pool, (2,), True).tolist() == [True, True]
    assert st.full(pool, (2,), 1.5).dtype == torch.get_default_dtype()
    assert st.full(pool, 2, 2, dtype=torch.bfloat16).tolist() == [2, 2]
    assert st.copy(pool, torch.arange(6).reshape(2, 3).T).stride() == (2, 1)
    with pytest.raises(slabpool.TensorTooLargeError):
        st.empty(pool, 1 << 30)
    with pytest.raises(slabpool.PoolExhausted):
        st.zeros(pool, 16 << 18, timeout=0.01), st.zeros(pool, 16 << 18, timeout=0.01)
    for call, error, message in (
        (lambda: st.empty("pool", 3), slabpool.InvalidTypeError, "must be a Request or a Pool"),
        (lambda: st.empty(pool, "3"), slabpool.InvalidTypeError, "size must be"),
        (lambda: st.empty(pool, (3.5,)), slabpool.InvalidTypeError, "shape must be"),
        (lambda: st.empty(pool, -1), slabpool.InvalidArgumentError, "negative"),
        (lambda: st.empty(pool, 3, dtype=np.float32), slabpool.InvalidTypeError, "torch.dtype"),
        (lambda: st.empty(pool, 3, dtype=torch.qint8), slabpool.InvalidArgumentError, "quantized"),
        (lambda: st.copy(pool, np.ones(3)), slabpool.InvalidTypeError, "torch.Tensor"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_tensors_are_ordinary_in_autograd(pool: slabpool.Pool) -> None:
    weight = st.full(pool, (4,), 2.0, dtype=torch.bfloat16).requires_grad_()
    assert weight.is_leaf
    (weight.float() ** 2).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [4.0] * 4
    with torch.no_grad():
        weight -= weight.grad / 4
    assert weight.tolist() == [1.0] * 4
    with pytest.raises(RuntimeError, match="resiz"):
        st.empty(pool, 4).resize_(100)


# ---- keeping


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda tensor: tensor,
        lambda tensor: tensor[1:],
        lambda tensor: tensor.T,
        lambda tensor: tensor.view(torch.uint8),
        lambda tensor: tensor.detach(),
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: tensor.unbind(),
        lambda tensor: torch.from_dlpack(tensor),
        lambda tensor: np.from_dlpack(tensor.view(torch.int16)),
        lambda tensor: tensor.view(torch.int16).numpy()[0],
        lambda tensor: torch.nn.Parameter(tensor),
    ],
    ids=[
        "itself",
        "slice",
        "T",
        "bytes",
        "detach",
        "storage",
        "unbind",
        "dlpack",
        "np dlpack",
        "numpy",
        "parameter",
    ],
)
def test_memory_comes_back_with_the_last_view_and_the_request(
    pool: slabpool.Pool, dtype: Any, view: Callable[[Any], Any]
) -> None:
    for view_last in (True, False):
        req = pool.request("r", devices=["gpu0"])
        tensor = st.zeros(req, (64, 64), dtype=dtype)
        nbytes = pool.stats().live
        kept = view(tensor)
        del tensor
        gc.collect()
        req.close()
        if view_last:
            assert pool.stats().live == nbytes
            assert req.ack("gpu0") is slabpool.Ack.RELEASED
            assert (pool.stats().live, pool.stats().retained) == (0, nbytes)
            del kept
            assert pool.stats().retained == 0
        else:
            assert req.live_views == 1
            del kept
            assert (req.live_views, pool.stats().live) == (0, nbytes)
            req.ack("gpu0")
            assert pool.stats().live == 0


@pytest.mark.parametrize("share", [torch.from_dlpack, torch.from_numpy, torch.as_tensor, st.from_numpy])
def test_arrays_become_tensors_without_a_copy(pool: slabpool.Pool, share: Callable[[Any], Any]) -> None:
    with pool.request("r") as req:
        array = req.zeros((4, 8), np.float32)
        tensor = share(array[1:, ::2])
        assert tensor.data_ptr() == array.ctypes.data + 32 and tensor.stride() == (8, 2)
        tensor.fill_(3)
        assert array.sum() == 3 * 12
        del array
    assert pool.stats().retained == 128
    del tensor
    assert pool.stats().retained == 0


def test_from_numpy_with_dtypes_that_numpy_lacks(pool: slabpool.Pool) -> None:
    array = pool.zeros((2, 8), np.uint16)
    tensor = st.from_numpy(array[:, ::2], torch.bfloat16)
    assert (tensor.dtype, tensor.stride(), tensor.shape) == (torch.bfloat16, (8, 2), (2, 4))
    tensor.fill_(1)
    assert (array[:, ::2] == 0x3F80).all() and not array[:, 1::2].any()
    assert st.from_numpy(pool.zeros(3, np.uint8), torch.float8_e4m3fn).tolist() == [0, 0, 0]
    frozen = pool.zeros(3)
    frozen.flags.writeable = False
    for bad, dtype, message in (
        (array, torch.float32, "have 2 bytes, those of torch.float32 4"),
        (frozen, None, "read-only"),
        (array[::-1], None, "stride"),
        (pool.zeros(3, "S3"), None, "S3"),
    ):
        with pytest.raises(slabpool.InvalidArgumentError, match=message):
            st.from_numpy(bad, dtype)
    with pytest.raises(slabpool.InvalidTypeError, match=r"numpy\.ndarray"):
        st.from_numpy([1, 2])  # type: ignore[arg-type]


def test_growing_tensors_are_torch_tensors_without_a_copy(pool: slabpool.Pool) -> None:
    with pool.request("r", devices=["gpu0"]) as req:
        keys = req.growable((1, 2, 0, 8), np.uint16, axis=2, limit=1000)
        old = st.from_numpy(keys.extend(3), torch.bfloat16)
        old.fill_(1)
        new = st.from_numpy(keys.extend(500), torch.bfloat16)
        assert new.shape == (1, 2, 503, 8) and new.data_ptr() == old.data_ptr()
        assert bool((new[:, :, :3] == 1).all())
        del keys, old
    assert req.ack("gpu0") is slabpool.Ack.RELEASED
    assert pool.stats().retained > 0
    del new
    assert pool.stats().retained == 0


def test_tensors_die_on_other_threads(pool: slabpool.Pool) -> None:
    """Also on threads without Python: autograd's threads drop the tensors saved for the backward pass."""
    weight = torch.ones(1000, requires_grad=True)
    for _ in range(5):
        data = st.full(pool, (1000,), 2.0)
        loss = (weight * data).sum()  # keeps data
        del data
        assert pool.stats().live == 4096
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        del loss
        gc.collect()
        assert pool.stats().live == 0
    assert weight.grad is not None and weight.grad.sum() == 5 * 2000


def test_numpy_handler_and_torch_together(pool: slabpool.Pool) -> None:
    with slabpool.numpy_handler(pool):
        tensor = torch.from_numpy(np.arange(1000.0))
    assert slabpool.numpy_usage(pool).arrays == 1
    assert tensor.sum() == 999 * 500
    del tensor
    assert slabpool.numpy_usage(pool).arrays == 0


def test_a_missing_torch_is_reported(tmp_path: Any) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import slabpool\n"
        "try: slabpool.torch\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout == "slabpool.torch needs PyTorch, which is not installed: pip install torch\n", (
        said.stderr
    )
