# shellcheck shell=bash
# The C++ tests under sanitizers, and the core as a C++ library; all three, or the one named.
stage_cpp() {
  local kind kinds=("$@")
  ((${#kinds[@]})) || kinds=(asan tsan release)
  for kind in "${kinds[@]}"; do
    case $kind in
      asan | tsan) cpp_tests "$kind" ;;
      release) cpp_release ;;
      *) die "cpp: no $kind; there are asan, tsan and release" ;;
    esac
  done
}

cpp_tests() {
  step "C++ tests, $1"
  # Some kernels lay out memory too randomly for ThreadSanitizer; `setarch -R` avoids it where allowed.
  local fixed_layout=()
  if setarch "$(uname -m)" -R true 2>/dev/null; then fixed_layout=(setarch "$(uname -m)" -R); fi
  quietly cmake --preset "$1"
  quietly cmake --build --preset "$1"
  quietly "${fixed_layout[@]}" ctest --preset "$1" -j "$(nproc)" --output-log "$work/ctest-$1.log"
  tail -n 4 "$work/ctest-$1.log"
  [[ $1 != asan ]] || cpp_coverage
}

# Which lines of the core the tests run, and which they do not. Branches that end in an assertion are not counted.
cpp_coverage() {
  step "lines of csrc/ that the C++ tests run"
  make_venv gcovr gcovr
  "$work/gcovr/bin/gcovr" --root . --filter csrc/ --exclude-lines-by-pattern '.*SLABPOOL_(ASSERT|VERIFY).*' \
    --fail-under-line 90 --txt-summary --txt "$work/coverage-cpp.txt" build/asan
  echo "not run, by file:"
  awk '$4 ~ /%$/ && $4 != "100%"' "$work/coverage-cpp.txt"
}

cpp_release() {
  step "the core alone, in release mode with warnings as errors, installed like a C++ library"
  quietly cmake -S . -B build/core -G Ninja -DSLABPOOL_WERROR=ON
  quietly cmake --build build/core
  rm -rf "$work/prefix"
  quietly cmake --install build/core --prefix "$work/prefix"
  test -e "$work/prefix/include/slabpool/c_api.h" || die "c_api.h was not installed"
}
