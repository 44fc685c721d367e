"""Error messages: each function takes what failed and raises an exception that says what to do.

Used on failure only.
"""
