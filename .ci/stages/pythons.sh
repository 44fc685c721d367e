# shellcheck shell=bash
# The oldest and the newest Python found here, without the one that all else runs with.
stage_pythons() {
  local minor main_minor other candidate venv numpy
  main_minor=$("$python" -c 'import sys; print(sys.version_info[1])')
  for minor in 10 13; do
    [[ $minor != "$main_minor" ]] || continue
    other=
    for candidate in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$minor".*/bin/python; do
      if usable_python "$candidate"; then other=$candidate; break; fi
    done
    if [[ -z $other ]]; then echo; echo "Python 3.$minor: none here"; continue; fi
    step "Python 3.$minor ($other)"
    venv=$work/py3.$minor
    rm -rf "$venv" "$work/dist-3.$minor"
    "$other" -m venv "$venv"
    # What differs between versions is how the interpreter is called, so a wheel that is not optimised does, and is
    # made sooner, and a few lives. The oldest Python also proves the oldest numpy we promise.
    "$venv/bin/pip" wheel -q --no-deps --wheel-dir "$work/dist-3.$minor" --config-settings cmake.build-type=None .
    numpy="numpy"; [[ $minor != 10 ]] || numpy="numpy==1.26.*"
    "$venv/bin/pip" install -q "$(echo "$work/dist-3.$minor"/*.whl)[test]" "$numpy"
    "$venv/bin/python" -c 'import numpy; print("numpy", numpy.__version__)'
    PATH=$venv/bin:$PATH SLABPOOL_TESTS_LIVES=25 "$venv/bin/pytest" -q -m "not slow" --no-header -p no:cacheprovider \
      tests/pool tests/request tests/laws tests/session tests/process
  done
}
