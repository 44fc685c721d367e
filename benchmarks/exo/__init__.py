"""exo 0.0.15 for real, with and without slabpool: two nodes on loopback, a random tiny Llama, and faults.

`python -m benchmarks.exo --exo CHECKOUT` runs everything and prints what it saw; docs/exo.md says what the
checkout and the Python that runs the nodes must have. Nothing here fetches anything.
"""
