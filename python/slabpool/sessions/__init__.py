"""Sessions: the object that users have, and the policy of what is kept, what expires and what gives way."""

from slabpool.sessions.giving_way import give_way
from slabpool.sessions.registry import Sessions
from slabpool.sessions.session import Session

__all__ = ["Session", "Sessions", "give_way"]
