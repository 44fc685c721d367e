# shellcheck shell=bash
# Checks that need no build.
stage_lint() {
  step "lint"
  make_venv lint ruff cython-lint codespell import-linter
  PATH=$work/lint/bin:$PATH .ci/lint
}
