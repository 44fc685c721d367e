"""What the system refuses at creation and attach is an error of slabpool's, with the cause and what to do."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import slabpool
from slabpool.shared import rendezvous, wire
from tests.process import devices
from tests.process.devices import PATIENCE
from tests.process.test_fork import in_child
from tests.scene import says

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # with threads, from Python 3.12 on
]


def leaves_nothing(before: dict[str, str]) -> bool:
    """Whether no more descriptors are open than before, once nothing refers to the pools of failed calls."""
    gc.collect()
    return {fd: what for fd, what in devices.descriptors().items() if before.get(fd) != what} == {}


def make(name: str = "engine") -> slabpool.Pool:
    """A small shared pool."""
    return slabpool.Pool("1MiB", memory="shared", name=name)


FREE = """
    import os, resource
    import slabpool
    from slabpool import SystemRefusedError

    def attempt(call):
        try:
            call().close()
            return "made"
        except SystemRefusedError as error:
            assert "RLIMIT_NOFILE" in str(error), str(error)
            assert error.errno == 24
            assert isinstance(error, OSError)
            return "refused"

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    answers = []
    for free in range(0, 20):
        first = os.dup(0)
        os.close(first)
        resource.setrlimit(resource.RLIMIT_NOFILE, (first + free, limits[1]))
        answers.append(attempt(lambda: {call}))
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        last = os.dup(0)
        os.close(last)
        assert last == first, (free, first, last)
        if answers[-2:] == ["made", "made"]:
            break
    print(*answers)
"""
CALLS = {
    "creation": "slabpool.Pool('1MiB', memory='shared', name='small')",
    "attach": "slabpool.attach('engine', device='gpu0', timeout=120)",
}


@pytest.mark.parametrize("loaded", ["", "from slabpool.shared import attach, owner"], ids=["fresh", "loaded"])
@pytest.mark.parametrize("call", CALLS)
def test_every_number_of_free_descriptors(shared_pool: slabpool.Pool, call: str, loaded: str) -> None:
    code = textwrap.dedent(FREE.replace("{call}", CALLS[call])).replace(
        "import slabpool\n", f"import slabpool\n{loaded}\n", 1
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=2 * PATIENCE
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split()
    assert answers == sorted(answers, reverse=True), answers
    assert answers[0] == "refused"
    assert answers[-2:] == ["made", "made"]


def test_no_free_descriptor_for_the_place_of_the_names(tmp_path: Path) -> None:
    """The directory for temporary files is found by making a file there."""
    code = textwrap.dedent(FREE.replace("{call}", CALLS["creation"]))
    environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        env=environment | {"TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split()
    assert (answers[0], answers[-2:]) == ("refused", ["made", "made"])


def test_the_cause_is_chained(meeting_place: Path) -> None:
    meeting_place.mkdir(mode=0o700)
    (meeting_place / "engine.lock").mkdir()
    with pytest.raises(slabpool.SystemRefusedError) as raised:
        make()
    assert type(raised.value.__cause__) is IsADirectoryError
    assert raised.value.errno == errno.EISDIR


def in_place(kind: str, path: Path, elsewhere: Path) -> None:
    """Puts something else where slabpool has a file."""
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(elsewhere)
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_something_else_in_the_place_of_the_lock(meeting_place: Path, tmp_path: Path, kind: str) -> None:
    meeting_place.mkdir(mode=0o700)
    (tmp_path / "elsewhere").touch()
    in_place(kind, meeting_place / "engine.lock", tmp_path / "elsewhere")
    before = devices.descriptors()
    with pytest.raises(slabpool.SystemRefusedError) as raised:
        make()
    says(
        raised,
        f"'engine' cannot take its name ... {meeting_place}/engine.lock ... in the place ... remove it",
    )
    del raised
    assert leaves_nothing(before)
    make("other").close()


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
def test_something_else_in_the_place_of_the_socket(meeting_place: Path, tmp_path: Path, kind: str) -> None:
    meeting_place.mkdir(mode=0o700)
    path = meeting_place / "engine.sock"
    (tmp_path / "elsewhere").touch()
    in_place(kind, path, tmp_path / "elsewhere")
    before = devices.descriptors()
    with pytest.raises(slabpool.AttachError) as attach:
        slabpool.attach("engine", device="gpu0")
    says(attach, f"no shared pool named 'engine' (looked for {path}: it is not a socket)")
    assert isinstance(attach.value.__cause__, OSError)
    if kind == "directory":
        with pytest.raises(slabpool.SystemRefusedError) as raised:
            make()
        says(raised, f"cannot take its name ({path}) ... remove it")
        del raised, attach
        assert leaves_nothing(before)
        path.rmdir()
        assert list(meeting_place.iterdir()) == []
    else:  # the name is this pool's, so what is in the way of its socket goes
        make().close()
        assert (tmp_path / "elsewhere").exists()
        assert list(meeting_place.iterdir()) == []


def test_a_missing_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(slabpool.SystemRefusedError) as raised:
        make()
    says(raised, f"cannot take its name ({tmp_path}/missing/slabpool- ... does not exist ... XDG_RUNTIME_DIR")
    with pytest.raises(slabpool.AttachError, match="there is no shared pool"):
        slabpool.attach("engine", device="gpu0")


def test_a_file_in_the_place_of_the_directory(meeting_place: Path) -> None:
    meeting_place.touch()
    with pytest.raises(slabpool.SystemRefusedError, match="must be a directory of user"):
        make()
    with pytest.raises(slabpool.AttachError, match="must be a directory of user"):
        slabpool.attach("engine", device="gpu0")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("owned", [True, False], ids=["not writable", "another user's"])
def test_a_directory_that_another_user_made(tmp_path: Path, owned: bool) -> None:
    # Below a directory that everybody may enter, unlike the one of the test.
    place = Path("/tmp", f"slabpool-test-{os.getpid()}")
    place.mkdir()
    place.chmod(0o755)
    if not owned:
        (place / "slabpool").mkdir(mode=0o700)
        place.chmod(0o777)

    def as_nobody() -> list[str]:
        os.setresuid(65534, 65534, 65534)
        os.environ.pop("XDG_RUNTIME_DIR")
        import tempfile

        tempfile.tempdir = str(place)
        if not owned:
            os.environ["XDG_RUNTIME_DIR"] = str(place)
        try:
            make()
        except slabpool.SystemRefusedError as error:
            return [type(error.__cause__).__name__, str(error)]
        raise AssertionError("a pool was made")

    try:
        cause, text = in_child(as_nobody)
    finally:
        shutil.rmtree(place)
    assert f"{place}/slabpool" in text
    if owned:
        assert cause == "PermissionError"
        assert "user 65534 must be allowed to make files there" in text
    else:
        assert "must be a directory of user 65534 with mode 0700; it is drwx------ of user 0" in text


def test_without_proc(require_program: Callable[..., str]) -> None:
    code = """
        import slabpool
        try:
            slabpool.Pool("1MiB", memory="shared")
        except slabpool.SystemRefusedError as error:
            print(error)
        slabpool.Pool("1MiB").close()
    """
    unshare = require_program("unshare")
    command = f'mount -t tmpfs none /proc && exec "{sys.executable}" -c "$0"'
    for more in ([], ["--user", "--map-root-user"]):
        start = [unshare, *more, "--mount"]
        if (
            subprocess.run([*start, "mount", "-t", "tmpfs", "none", "/proc"], capture_output=True).returncode
            == 0
        ):
            break
    else:
        pytest.skip("needs the right to mount over /proc in a namespace")
    done = subprocess.run(
        [*start, "sh", "-c", command, textwrap.dedent(code)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "the system refuses memory for a shared pool of '1MiB': No such file or directory" in done.stdout
    assert "mount /proc for this process" in done.stdout


def test_too_many_descriptors_in_flight(shared_pool: slabpool.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    send = wire.send

    def refuses(line: object, message: dict[str, object], files: tuple[int, ...] = ()) -> None:
        if files:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        send(line, message)  # type: ignore[arg-type]

    with (
        monkeypatch.context() as patched,
        pytest.raises(slabpool.AttachError, match=r"refuses device 'gpu0'.*more descriptors than were"),
    ):
        patched.setattr(wire, "send", refuses)
        slabpool.attach("engine", device="gpu0")
    with slabpool.attach("engine", device="gpu0", timeout=PATIENCE) as peer:
        assert not peer.lost


def test_a_path_that_is_too_long_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    make().close()  # through /proc
    monkeypatch.setattr(rendezvous.os.path, "exists", lambda path: False)
    before = devices.descriptors()
    with pytest.raises(slabpool.SystemRefusedError, match="longer than 107 bytes"):
        make()
    assert leaves_nothing(before)


def test_a_thread_that_cannot_start(meeting_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    before = devices.descriptors()
    with monkeypatch.context() as patched:
        patched.setattr("threading.Thread.start", refuses)
        with pytest.raises(slabpool.SystemRefusedError, match="no thread can be started"):
            make()
    assert list(meeting_place.iterdir()) == []
    assert leaves_nothing(before)
    with make():
        with monkeypatch.context() as patched:
            patched.setattr("threading.Thread.start", refuses)
            with pytest.raises(slabpool.SystemRefusedError, match="no thread can be started"):
                slabpool.attach("engine", device="gpu0")
        with slabpool.attach("engine", device="gpu0", timeout=PATIENCE) as peer:
            assert not peer.lost


def test_system_refused_error_is_an_os_error() -> None:
    assert issubclass(slabpool.SystemRefusedError, (slabpool.SlabpoolError, OSError))
    assert not issubclass(slabpool.DeviceUnavailableError, OSError)
