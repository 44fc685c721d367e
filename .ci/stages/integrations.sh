# shellcheck shell=bash
# What others' libraries make of it.
stage_integrations() {
  need_wheel
  # A torch that is known to work: the newest is tried by hand, and named in docs/integrations.md.
  step "integrations: torch, transformers, tinygrad, numpy's own tests, exo's shapes, CUDA libraries on the stand-in"
  make_venv integrations "${wheel}[test,integrations]" 'torch==2.13.*' pytest-cov
  local bin=$work/integrations/bin
  # Their dependencies would bring a CUDA toolkit of gigabytes; what of them runs without a GPU needs these alone.
  "$bin/pip" install -q --no-deps 'cuda-core==1.2.*' 'cuda-bindings==12.9.*' cuda-pathfinder 'numba-cuda==0.30.*' \
    'cupy-cuda12x==14.2.*' fastrlock
  "$bin/pip" install -q 'numba==0.68.*'
  PATH=$bin:$PATH COVERAGE_FILE=$work/.coverage-integrations "$bin/pytest" -q --no-header -p no:cacheprovider \
    --cov --cov-report=term-missing:skip-covered tests/integrations
}
