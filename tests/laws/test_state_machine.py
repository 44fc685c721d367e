"""Random sequences of calls on a pool, compared step by step with a plain model of its holders.

After every step all observable laws must hold: bytes add up and equal the model's, every count is exact, no
bytes changed while held (each array bears its own stamp), every answer is the model's, and what the model
says must fit was served. Wrong calls must change none of that.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.laws.rules_holders import HolderRules
from tests.laws.rules_memory import MemoryRules
from tests.laws.rules_moving import MovingRules
from tests.laws.rules_sessions import SessionRules

# Number of runs in each mode; raise it for a longer search.
LIVES = int(os.environ.get("SLABPOOL_TESTS_LIVES", "120"))

MODES: dict[str, dict[str, object]] = {
    "plain": {},
    "scrub": {"scrub": "release", "events": 64},
    "debug": {"debug": 2},
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # from requests in a run that was cut short
@pytest.mark.parametrize("mode", MODES)
def test_random_calls(mode: str) -> None:
    """No sequence of calls, right or wrong, breaks a law."""
    machine = type(
        f"Lives_{mode}", (MemoryRules, HolderRules, SessionRules, MovingRules), {"options": MODES[mode]}
    )
    case = machine.TestCase
    case.settings = settings(max_examples=LIVES, stateful_step_count=60)
    case("runTest").runTest()
