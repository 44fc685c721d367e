# shellcheck shell=bash
# mypy --strict: the package, and the typed sample against the wheel.
stage_types() {
  need_wheel
  step "mypy --strict: the package, and the typed sample against the wheel"
  make_venv typing "${wheel}[cli]" mypy
  "$work/typing/bin/mypy"
  local samples=(tests/typing/*.py)
  [[ -e ${samples[0]} ]] || die "no typed sample in tests/typing"
  # From elsewhere and without our settings, as a user's project would be checked.
  rm -rf "$work/sample"
  mkdir "$work/sample" && cp "${samples[@]}" "$work/sample"
  (cd "$work/sample" && "$work/typing/bin/mypy" --strict --config-file= ./*.py)
}
