# shellcheck shell=bash
# What the stages share: messages, packages, the copy of the tree, venvs.

work=
beside=
kept=${SLABPOOL_CI_WORK:-}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off
export PIP_NO_COMPILE=0  # i.e. --no-compile: bytecode is made when it is first needed
export SLABPOOL_TESTS_REQUIRE_ALL=1 RUFF_NO_CACHE=true
unset PYTHONPATH VIRTUAL_ENV || true
exec </dev/null

step() { printf '\n==> [%3d s] %s\n' "$SECONDS" "$*"; }
die() { printf '\n.ci/run: %s\n' "$*" >&2; exit 1; }

# A stage by its name: stage_NAME of .ci/stages, timed.
stage() {
  local begin=$SECONDS
  declare -F "stage_$1" >/dev/null || die "no stage $1; the stages are$(declare -F | sed -n 's/^declare -f stage_/ /p' | tr -d '\n')"
  "stage_$1" "${@:2}"
  printf '%-14s %4d\n' "$*" $((SECONDS - begin)) >>"$work/times"
}

# Runs a command and shows its output only if it fails.
quietly() {
  local log
  log=$(mktemp "$work/log.XXXXXX")
  "$@" >"$log" 2>&1 || { cat "$log"; die "failed: $*"; }
}

install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  echo "installing: ${missing[*]}"
  local as_root=()
  [[ $(id -u) == 0 ]] || as_root=(sudo -n)
  "${as_root[@]}" apt-get -qq -o Acquire::Retries=3 update
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
}

# Whether a Python can make venvs and compile extension modules.
usable_python() {
  "$1" - <<'PY' >/dev/null 2>&1
import ensurepip, os, sys, sysconfig, venv
ok = (3, 10) <= sys.version_info[:2] <= (3, 13)
sys.exit(not (ok and os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))))
PY
}

# A copy of the tree without what git ignores, in $1.
copy_tree() {
  mkdir -p "$1"
  if git -C "$root" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git -C "$root" ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do if [[ -e $root/$file ]]; then printf '%s\0' "$file"; fi; done >"$work/files"
    tar -C "$root" --null -T "$work/files" -cf - | tar -C "$1" -xf -
  else
    tar -C "$root" --exclude=./.git -cf - . | tar -C "$1" -xf -
  fi
}

# Packages, the work folder, the copy of the tree; from here on everything runs in the copy.
prepare() {
  if [[ -n $kept ]]; then mkdir -p "$kept"; work=$(cd "$kept" && pwd)
  else work=$(mktemp -d "${TMPDIR:-/tmp}/slabpool-ci.XXXXXX"); fi
  trap '[[ -z $beside ]] || kill -- "-$beside" 2>/dev/null; [[ -n $kept ]] || rm -rf "$work"' EXIT
  step "system packages"
  install_packages ca-certificates git g++ clang cmake ninja-build ccache binutils util-linux libgtest-dev googletest \
    clang-format shellcheck valgrind
  usable_python python3 || install_packages python3 python3-venv python3-dev
  usable_python python3 || die "python3 is not a Python 3.10 to 3.13 with venv and headers"
  python=$(python3 -c 'import sys; print(sys.executable)')
  "$python" --version
  g++ --version | head -n 1

  # Every build of the package from the same sources, by pip in a folder of its own, finds what the first compiled.
  export CYTHON_CACHE_DIR=$work/cython CCACHE_DIR=$work/ccache CCACHE_BASEDIR=${TMPDIR:-/tmp} CCACHE_NOHASHDIR=1
  export CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
  src=$work/src
  rm -rf "$src"
  copy_tree "$src"
  cd "$src" || exit
}

# Once per work folder: a venv named $1, with what the other arguments tell pip to install.
make_venv() {
  local venv=$work/$1; shift
  rm -rf "$venv"
  "$python" -m venv "$venv"
  "$venv/bin/pip" install -q "$@"
}

# The repaired wheel, built first if there is none.
need_wheel() {
  compgen -G "$work/repaired/*.whl" >/dev/null || stage wheel
  wheel=$(echo "$work"/repaired/*.whl)
}

# The unpacked sdist, which holds the files of the tree (compare_dists.py). The wheel is built there, and the
# README's commands run there, so that they find the same sources at the same path in the compiler's cache.
unpacked_sdist() { echo "$work"/sdist/slabpool-*/; }
