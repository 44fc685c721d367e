"""Random lives of a pool, step by step against a plain model of who holds what.

After every step all the laws that can be observed must hold: bytes add up and equal the model's, every
count is exact, nobody's bytes changed while held (each array bears a stamp of its own), every answer is the
one the model gives, and what the model says must fit was served. Wrong calls must leave all that as it was.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.laws.rules_holders import HolderRules
from tests.laws.rules_memory import MemoryRules
from tests.laws.rules_sessions import SessionRules

# How many lives in each mode; more of them for a longer search.
LIVES = int(os.environ.get("SLABPOOL_TESTS_LIVES", "120"))

MODES: dict[str, dict[str, object]] = {
    "plain": {},
    "scrub": {"scrub": "release", "events": 64},
    "debug": {"debug": 2},
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of requests in a life that fell short
@pytest.mark.parametrize("mode", MODES)
def test_random_lives(mode: str) -> None:
    """No sequence of calls, right or wrong, breaks a law."""
    machine = type(f"Lives_{mode}", (MemoryRules, HolderRules, SessionRules), {"options": MODES[mode]})
    case = machine.TestCase
    case.settings = settings(max_examples=LIVES, stateful_step_count=60)
    case("runTest").runTest()
