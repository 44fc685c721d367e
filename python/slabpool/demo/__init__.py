"""``slabpool demo``: multi-device inference on a toy model, with all its memory in a pool.

`model` is the decoder, `reference` what its tokens must be, `workload` what is served, `memory` where tensors
come from (`baseline`: without a pool), `ring` the device threads, `serve` the host, `report` the result and
`command` the command line.
"""

from slabpool.demo.command import add_arguments, run

__all__ = ["add_arguments", "run"]
