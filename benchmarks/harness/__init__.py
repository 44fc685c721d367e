"""Runs the suite. `model` defines the terms, `rounds` runs `programs` in turns, `figures` compares.

Each module uses only those before it in this list: `model`, `peers`, `native`, `programs`, `rounds`,
`figures`, `machine`, `record`, `text`, `plot`, `cli`. `worker` runs in the fresh process of a Python case.
"""
