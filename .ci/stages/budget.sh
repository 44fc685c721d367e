# shellcheck shell=bash
# What the hot paths cost, in instructions.
stage_budget() {
  need_wheel
  step "instructions of the hot paths, against their budget"
  # With its bytecode beside it: under callgrind, and without a place to keep it, making it takes minutes.
  (unset PIP_NO_COMPILE; make_venv budget "$wheel" pyperf)
  "$work/budget/bin/python" -m benchmarks.instructions
  "$work/budget/bin/python" -m benchmarks.instructions.imports
}
