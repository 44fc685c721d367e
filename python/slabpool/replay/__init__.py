"""``slabpool replay``: real allocations and acknowledgements, driven by a trace of a real service.

`trace` reads the trace, `models` says what a token costs, `schedule` lays out what would happen with
memory to spare, `engine` makes it happen in a pool with `devices` as its threads and notes it in an
`outcome`, `report` tells it and `command` is the command line. Each uses only those named before it.
"""
