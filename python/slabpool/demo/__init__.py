"""``slabpool demo``: multi-device inference on a toy model, with all its memory in a pool.

`model` is the decoder, `reference` computes the expected tokens and `workload` the requests. `memory` gives
each request its tensors (`baseline` does it without a pool). `ring` and `processes` are the devices, `serve`
is the host, `report` holds the figures and `command` is the command line.
"""

from slabpool.demo.command import add_arguments, run

__all__ = ["add_arguments", "run"]
