"""``slabpool replay``: real allocations and acknowledgements, driven by a trace of a real service.

`console` has helpers for commands. `trace` reads the trace, `models` has the bytes per token of some models,
and `schedule` computes all times in advance. `outcome` holds the counts, `devices` are threads that
acknowledge, and `engine` runs the schedule in a pool. `report` formats the outcome and `command` is the
command line. Each module uses only modules named before it.
"""
