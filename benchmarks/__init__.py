"""Benchmarks of slabpool beside what people use today: ``python -m benchmarks`` from the checkout's root.

`harness` runs fresh processes in turn and tells what came of it; `suite` has one file per benchmark;
`cpp` and `instructions` hold the C++ side. What is measured is the *installed* slabpool.
"""
