"""Limits below what was asked: of the process (addresses, data, mappings, descriptors), of its control
group, and of the system calls that it may make. A small pool opens, a refusal names the limit, and the pool
stays as it was.

Each test runs in a process of its own, because a limit cannot be raised again, or hits the test runner too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import _missing
from tests.cuda.fixtures import cuda  # noqa: F401  # a fixture
from tests.cuda.standin_build import Standin

# What the children have at hand.
HELP = """
import contextlib, ctypes, mmap, os, resource, sys, threading, time, warnings
import numpy as np, slabpool

MiB = 1 << 20
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

def status(name):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
    return int(line.split()[1]) << 10

def refused(call, kind):
    try:
        call()
    except kind as error:
        assert len(str(error)) < 2000, len(str(error))
        return str(error)
    raise AssertionError("it was served")

class Mappings:
    "All mappings that the process may have: every second page of a range gets another protection."
    def __init__(self):
        self.bytes = 2 * 4096 * 1_000_000
        self.base = libc.mmap(None, self.bytes, 0, 0x22 | 0x4000, -1, 0)
        assert self.base not in (None, 2**64 - 1)
        for at in range(self.base, self.base + self.bytes, 2 * 4096):
            if libc.mprotect(at, 4096, 1) != 0:
                return
        sys.exit(77)
    def free(self):
        assert libc.munmap(self.base, self.bytes) == 0
"""


def run(code: str, *arguments: str, timeout: float = 400) -> None:
    """Runs the code in a new process; skips if it says that this machine cannot (77)."""
    done = subprocess.run(
        [sys.executable, "-c", HELP + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip() or "this machine does not have that limit")
    assert (done.returncode, done.stderr) == (0, ""), (done.returncode, done.stderr[-3000:])


@pytest.fixture(autouse=True)
def meeting_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")


# ---- addresses and data


@pytest.mark.parametrize("memory", ["host", "shared"])
@pytest.mark.parametrize(("limit", "mib"), [("RLIMIT_DATA", 256), ("RLIMIT_AS", 2048)])
def test_a_small_pool_opens_and_serves_its_megabyte(limit: str, mib: int, memory: str) -> None:
    run(
        """
        limit, mib, memory = sys.argv[1:]
        resource.setrlimit(getattr(resource, limit), (int(mib) * MiB,) * 2)
        data = status("VmData")
        pool = slabpool.Pool("1MiB", memory=memory)
        assert status("VmData") - data < 16 * MiB, "tables count as data before they are used"
        x = pool.full(1000 << 10, 3, np.uint8)
        assert (x == 3).all() and pool._verify() is None
        del x
        requests = [pool.request(i, devices=["d"]) for i in range(1000)]
        for request in requests:
            request.close()
            assert request.ack("d").name == "RELEASED"
        again = pool.full(1000 << 10, 4, np.uint8)
        assert (again == 4).all() and np.empty(8 * MiB, np.uint8).nbytes == 8 * MiB
        """,
        limit,
        str(mib),
        memory,
    )


@pytest.mark.parametrize("memory", ["host", "shared"])
def test_a_refusal_at_creation_names_the_address_space(memory: str) -> None:
    run(
        """
        resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + 64 * MiB,) * 2)
        before = len(os.listdir("/proc/self/fd")), status("VmSize")
        for capacity in ("1MiB", "1GiB"):
            text = refused(lambda: slabpool.Pool(capacity, memory=sys.argv[1]), slabpool.MemoryLimitError)
            assert repr(capacity) in text and "RLIMIT_AS is " in text and "is in use" in text, text
        assert len(os.listdir("/proc/self/fd")) == before[0]
        assert status("VmSize") - before[1] < 16 * MiB
        """,
        memory,
    )


def test_refused_tables_leave_the_pool_as_it_was() -> None:
    run(
        """
        pool = slabpool.Pool("64MiB", huge_pages=False)
        kept = pool.full(1000, 7, np.uint8)
        first = pool.request("first")
        resource.setrlimit(resource.RLIMIT_DATA, (status("VmData"), resource.RLIM_INFINITY))
        requests, texts = [], []
        while not texts:
            try:
                requests.append(pool.request(len(requests)))
            except slabpool.PoolExhausted as error:
                texts.append(str(error))
            except MemoryError:  # of the interpreter: it gets memory, until the pool is the one without
                resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + 65536, resource.RLIM_INFINITY))
        assert pool._verify() is None and (kept == 7).all()
        refused(lambda: pool.empty(48 * MiB, np.uint8), slabpool.PoolExhausted)
        refused(lambda: first.empty(48 * MiB, np.uint8), slabpool.PoolExhausted)
        stats = pool.stats()
        assert stats.committed == stats.live + stats.retained + stats.in_doubt + stats.cached
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
        assert len(pool.requests()) == len(requests) + 1
        requests += [pool.request(("late", i).__repr__()) for i in range(1000)]
        x = first.full(48 * MiB, 1, np.uint8)
        assert x[-1] == 1 and (kept == 7).all() and pool._verify() is None
        """
    )


# ---- mappings and descriptors


@pytest.mark.parametrize("loaded", [False, True], ids=["first", "later"])
def test_without_mappings_every_refusal_is_an_error_of_slabpool(loaded: bool, cuda: Standin | None) -> None:  # noqa: F811
    if cuda is None:
        pytest.skip("needs the stand-in driver, and this machine has a GPU")
    run(
        """
        loaded = sys.argv[1] == "True"
        if loaded:
            slabpool.attach
            for memory in ("shared", "cuda:0", "pinned"):
                slabpool.Pool("1MiB", memory=memory).close()
        pool = slabpool.Pool("1GiB", huge_pages=False)
        kept = pool.full(1000, 7, np.uint8)
        request = pool.request("r", devices=["d"])
        taken = Mappings()
        modules = set(sys.modules)
        why = "vm.max_map_count is "
        for memory in ("host", "shared"):
            first = (memory, loaded) == ("shared", False)
            # Its modules can be loaded if the interpreter has enough memory left; else a part of them is.
            kind = (slabpool.MemoryLimitError, *[slabpool.SystemRefusedError] * first)
            text = refused(lambda: slabpool.Pool("1MiB", memory=memory), kind)
            assert why in text or first, text
            if first:
                modules = set(sys.modules)
        for memory in ("cuda:0", "pinned"):
            refused(lambda: slabpool.Pool("1MiB", memory=memory), slabpool.SlabpoolError)
        growing = []
        def grow():
            while True:
                growing.append(request.growable((1, 1024), np.uint8, limit=1 << 20))
                growing[-1].array[:] = 9
        text = refused(grow, slabpool.PoolExhausted)
        assert why in text and " mappings" in text, text
        refused(lambda: request.ack("other"), slabpool.UnknownDeviceError)
        refused(lambda: pool.empty(2 << 30, np.uint8), slabpool.TensorTooLargeError)
        refused(lambda: pool.request("r", devices=["d", "d"]), slabpool.DuplicateDeviceError)
        refused(lambda: pool.request("q", quota="1MiB").empty(2 * MiB, np.uint8), slabpool.QuotaExceededError)
        refused(lambda: pool.empty(800 * MiB, np.uint8, timeout=0.01), slabpool.PoolExhausted)
        refused(pool.close, slabpool.PoolBusyError)
        refused(lambda: slabpool.Pool("1MiB", memory="nothing"), slabpool.InvalidArgumentError)
        new = sorted(m for m in set(sys.modules) - modules if m not in ("slabpool.shared", "atexit", "errno"))
        assert not new, new
        if not loaded:
            with contextlib.suppress(slabpool.SystemRefusedError):
                slabpool.attach
        assert pool._verify() is None and (kept == 7).all()
        assert all((g.array == 9).all() for g in growing)
        taken.free()
        for memory in ("host", "shared", "cuda:0", "pinned"):
            slabpool.Pool("1MiB", memory=memory).close()
        assert slabpool.attach and pool.full(800 * MiB, 1, np.uint8)[-1] == 1
        """,
        str(loaded),
    )


@pytest.mark.parametrize("loaded", [False, True], ids=["first", "later"])
def test_without_descriptors_every_refusal_is_an_error_of_slabpool(loaded: bool) -> None:
    run(
        """
        loaded = sys.argv[1] == "True"
        if loaded:
            slabpool.attach
            slabpool.Pool("1MiB", memory="shared").close()
        pool = slabpool.Pool("64MiB", huge_pages=False)
        kept = pool.full(1000, 7, np.uint8)
        request = pool.request("r", devices=["d"])
        data = status("VmData")
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        modules = set(sys.modules)
        refused(lambda: slabpool.Pool("1MiB", memory="shared"), slabpool.SlabpoolError)
        with slabpool.Pool("1MiB") as other:  # needs none
            assert other.full(1000 << 10, 3, np.uint8)[-1] == 3
        # What is in use cannot be read now; the limit is named all the same.
        resource.setrlimit(resource.RLIMIT_DATA, (data + 8 * MiB, resource.RLIM_INFINITY))
        text = refused(lambda: pool.empty(48 * MiB, np.uint8), slabpool.PoolExhausted)
        assert "RLIMIT_DATA is " in text and "is in use" not in text, text
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
        refused(lambda: request.ack("other"), slabpool.UnknownDeviceError)
        refused(lambda: pool.empty(80 * MiB, np.uint8), slabpool.TensorTooLargeError)
        refused(lambda: pool.request("q", reserve="65MiB"), slabpool.PoolExhausted)
        refused(pool.close, slabpool.PoolBusyError)
        if not loaded:
            refused(lambda: slabpool.attach, slabpool.SystemRefusedError)
        new = sorted(m for m in set(sys.modules) - modules if m not in ("slabpool.shared", "atexit", "errno"))
        assert not new, new
        assert pool._verify() is None and (kept == 7).all()
        for fd in taken:
            os.close(fd)
        slabpool.Pool("1MiB", memory="shared").close()
        assert slabpool.attach
        """,
        str(loaded),
    )


# ---- control groups


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of the kernel with 256 MiB of memory."""
    version_1 = Path("/sys/fs/cgroup/memory")
    folder = (version_1 if version_1.exists() else version_1.parent) / f"slabpool-pytest-{os.getpid()}"
    limit = folder / ("memory.limit_in_bytes" if version_1.exists() else "memory.max")
    try:
        folder.mkdir()
        limit.write_text(str(256 << 20))
        assert int(limit.read_text()) == 256 << 20
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        _missing(f"needs the right to make a control group with a limit: {error}")
    yield folder
    folder.rmdir()


def test_a_pool_larger_than_its_control_group_says_so(group: Path) -> None:
    run(
        """
        group = sys.argv[1]
        open(group + "/cgroup.procs", "w").write(str(os.getpid()))
        for memory in ("shared", "pinned"):
            text = refused(lambda: slabpool.Pool("300MiB", memory=memory), slabpool.MemoryLimitError)
            for part in ("300 MiB", group, "is 256 MiB", "Make the pool smaller"):
                assert part in text, (part, text)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            slabpool.Pool("256MiB")
            pool = slabpool.Pool("300MiB")
        (warning,) = caught
        assert warning.category is RuntimeWarning and warning.filename == "<string>", warning
        assert group in str(warning.message) and "300 MiB" in str(warning.message), warning
        assert pool.full(1000, 1, np.uint8)[-1] == 1
        """,
        str(group),
    )


def test_a_full_control_group_is_an_answer_of_a_shared_pool(group: Path) -> None:
    run(
        """
        group = sys.argv[1]
        open(group + "/cgroup.procs", "w").write(str(os.getpid()))
        a = slabpool.Pool("200MiB", memory="shared")
        b = slabpool.Pool("200MiB", memory="shared")
        held = [a.full(1 * MiB, i, np.uint8) for i in range(150)]
        more = []
        def fill():
            while True:
                more.append(b.full(1 * MiB, 9, np.uint8))
        text = refused(fill, slabpool.PoolExhausted)
        assert group in text and "is 256 MiB" in text and 50 < len(more) < 110, (len(more), text)
        refused(lambda: b.empty(100 * MiB, np.uint8), slabpool.PoolExhausted)
        assert all((x == i).all() for i, x in enumerate(held)) and all((x == 9).all() for x in more)
        for pool in (a, b):
            s = pool.stats()
            assert pool._verify() is None and s.committed == s.live + s.retained + s.in_doubt + s.cached
        del held, pool
        a.trim()
        assert b.full(100 * MiB, 2, np.uint8)[-1] == 2
        """,
        str(group),
    )


# ---- system calls


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_memory_of_sleeping_threads_is_found_without_membarrier(error: str) -> None:
    run(
        """
        import errno, platform, struct
        numbers = {"x86_64": 324, "aarch64": 283}
        if platform.machine() not in numbers or not os.access("/proc/self/syscall", os.R_OK):
            sys.exit(77)
        pool = slabpool.Pool("8MiB")
        def use():
            arrays = [pool.full(64 << 10, 1, np.uint8) for _ in range(64)]
        ready, over, turn = threading.Barrier(5), threading.Event(), threading.Lock()
        def run():
            with turn:  # four at once would need 16 MiB
                use()  # 4 MiB, some of which stay with this thread
            ready.wait()
            over.wait()
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        ready.wait()
        def block(code, k, jt=0, jf=0):
            return struct.pack("HBBI", code, jt, jf, k)
        program = b"".join([
            block(0x20, 0),                                     # load the call's number
            block(0x15, numbers[platform.machine()], 0, 1),     # membarrier?
            block(0x06, 0x00050000 | getattr(errno, sys.argv[1])),
            block(0x06, 0x7FFF0000),
        ])
        buffer = ctypes.create_string_buffer(program)
        filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer)))
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter, 0, 0):
            sys.exit(77)
        assert libc.syscall(numbers[platform.machine()], 8, 0, 0) == -1
        assert ctypes.get_errno() == getattr(errno, sys.argv[1])
        x = pool.full(8 << 20, 2, np.uint8, timeout=120)  # everything that the sleeping threads have
        assert (x == 2).all() and pool._verify() is None
        refused(lambda: pool.empty(64 << 10, np.uint8, timeout=0.01), slabpool.PoolExhausted)
        del x
        for i in range(200):  # the threads' caches are in use again
            use()
            assert pool.empty(8 << 20, np.uint8, timeout=120).nbytes == 8 << 20
        over.set()
        for thread in threads:
            thread.join()
        assert pool._verify() is None
        """,
        error,
    )
