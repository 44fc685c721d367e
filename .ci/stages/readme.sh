# shellcheck shell=bash
# The README is what users run: its commands are taken from it, word for word, and run in fresh venvs.
readme_command() {
  grep -m 1 -o -E -- "$1" README.md || die "README.md no longer holds the command /$1/ that CI runs"
}

in_fresh_venv() {
  local venv=$work/$1; shift
  rm -rf "$venv"
  "$python" -m venv "$venv"
  echo "+ $*"
  (cd "$(unpacked_sdist)" && set +u && source "$venv/bin/activate" && set -u && bash -euo pipefail -c "$*")
}

stage_demo() {
  need_wheel
  step "the README's install and demo"
  local command
  command=$(readme_command "pip install \. && slabpool demo")
  in_fresh_venv demo "$command"
}

stage_readme() {
  need_wheel
  step "the README's test command (all of the suite but tests/integrations, which has a stage of its own)"
  local command
  command=$(readme_command "pip install '\.\[test\]' && pytest")
  # With pytest-cov beside it, which names the lines of python/ that no test ran in the tests' own process. Cython and
  # other processes are not counted.
  SLABPOOL_TESTS_FAULTS=1000 PYTEST_ADDOPTS="--ignore=tests/integrations --cov --cov-report=term-missing:skip-covered" \
    COVERAGE_FILE=$work/.coverage in_fresh_venv tests "pip install -q pytest-cov && $command" |
    tee "$work/readme.log"
}
