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
  # With pytest-cov beside it, which counts the lines of python/ that run in the tests' own process.
  SLABPOOL_TESTS_FAULTS=1000 PYTEST_ADDOPTS="--ignore=tests/integrations --cov --cov-report=" \
    COVERAGE_FILE=$work/.coverage.readme in_fresh_venv tests "pip install -q pytest-cov && $command" |
    tee "$work/readme.log"
  python_coverage
}

# Of the suite and, if they ran before, of the integrations.
python_coverage() {
  step "lines of python/ that the tests run, and which they do not (Cython is not counted, nor are other processes)"
  local coverage=$work/tests/bin/coverage
  (cd "$work" && "$coverage" combine -q --keep --rcfile="$src/pyproject.toml" .coverage.*)
  (cd "$work" && "$coverage" report --rcfile="$src/pyproject.toml" --skip-covered --show-missing --fail-under 80)
}
