"""Benchmarks that compare slabpool with other allocators: ``python -m benchmarks`` from the checkout's root.

`harness` runs each case in fresh processes, in turns, and reports the figures; `suite` has one file per
benchmark; `cpp` and `instructions` hold the C++ side. What is measured is the *installed* slabpool.
"""
