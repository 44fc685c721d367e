"""Sessions: the object that users have, and the policy of what is kept, what expires and what gives way."""
