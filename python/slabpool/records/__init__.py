"""The pool's reports: plain, immutable records.

They are copies of the pool's state at one instant. They keep no memory alive. They are named tuples, because
making a dataclass for each would cost a third of the time of importing slabpool. Their modules do not import
``annotations`` from ``__future__``: typing compiles every annotation of a named tuple that is a string.
"""

from slabpool.records.groups import GroupRecord, SessionRecord, SessionStats, WaiterRecord
from slabpool.records.pool import Corruption, Event, NumpyUsage, Stats
from slabpool.records.requests import (
    Ack,
    RequestRecord,
    RequestState,
    of_group,
    waits_for,
)

__all__ = [
    "Ack",
    "Corruption",
    "Event",
    "GroupRecord",
    "NumpyUsage",
    "RequestRecord",
    "RequestState",
    "SessionRecord",
    "SessionStats",
    "Stats",
    "WaiterRecord",
    "of_group",
    "waits_for",
]
