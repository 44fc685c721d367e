"""The real exo 0.0.15, with and without slabpool: two nodes on loopback, a random tiny Llama, and faults.

`python -m benchmarks.exo --exo CHECKOUT` runs everything and prints the results; docs/exo.md says what the
checkout and the Python that runs the nodes must have. Nothing is downloaded.
"""
