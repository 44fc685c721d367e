"""Runs the suite: `model` has the words, `rounds` runs `programs` in turn, `figures` compares, others tell.

Each module uses only those named before it: `model`, `peers`, `native`, `programs`, `rounds`, `figures`,
`machine`, `record`, `text`, `plot`, `cli`. `worker` is what a fresh process of a Python case runs.
"""
