"""``slabpool demo --processes``: right tokens, nothing left over, and a killed device costs only its own
requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from slabpool.errors import InvalidArgumentError
from tests.demo.test_command import figures, parse, run


@pytest.fixture(autouse=True)
def meeting_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for the sockets of this test's pools."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "slabpool"


@pytest.mark.parametrize("options", [("--devices", "1"), ("--concurrency", "8"), ("--devices", "6")])
def test_tokens_are_right_and_nothing_is_left(
    tmp_path: Path, meeting_place: Path, options: tuple[str, ...]
) -> None:
    status, result = figures(tmp_path, "--processes", "--requests", "40", *options)
    assert status == 0
    assert result["ok"] is result["processes"] is True
    assert result["answered_requests"] == 40
    assert (result["kills"], result["interrupted_requests"]) == (0, 0)
    assert result["leaked_requests"] == result["leaked_bytes"] == result["final_live"] == 0
    assert list(meeting_place.iterdir()) == []


def test_kills_end_only_the_requests_they_hit(tmp_path: Path, meeting_place: Path) -> None:
    status, result = figures(tmp_path, "--processes", "--requests", "120", "--kill-every", "15")
    assert status == 0
    assert result["kills"] == 8
    # Most kills hit a running request, and none hits more than a burst of four.
    assert 4 <= result["interrupted_requests"] <= 32
    assert result["answered_requests"] == 120 - result["interrupted_requests"]
    assert result["wrong_tokens"] == 0
    assert result["leaked_requests"] == result["leaked_bytes"] == result["final_live"] == 0
    assert list(meeting_place.iterdir()) == []


def test_a_pool_that_is_too_small_for_a_burst(tmp_path: Path) -> None:
    status, result = figures(
        tmp_path, "--processes", "--requests", "30", "--capacity", "1MiB", "--concurrency", "8"
    )
    assert status in (0, 1)  # a hidden state may find no room; then the request has no answer
    assert result["leaked_requests"] == result["leaked_bytes"] == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [(("--kill-every", "3"), "needs --processes"), (("--processes", "--baseline"), "needs a pool")],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        run(parse(*options))
