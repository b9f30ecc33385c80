#!/usr/bin/env bash
# Build the site of docs/ into build/site; warnings are errors, and links within the site are checked.
#
#   ./mpirun_scripts/docs.sh               # then open build/site/index.html
#   ./mpirun_scripts/docs.sh --examples    # first run the programs of docs/examples, for the gallery
#
# SFB_INSTALL=no    take the environment as it is; no network is needed then
# SFB_MPI, SFB_VENV, SFB_PYTHON as _setup.sh says
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

[ $# = 0 ] || [ "$*" = --examples ] || fail "expected nothing or --examples, got '$*'"
if [ "${SFB_INSTALL:-yes}" = yes ]; then
    set_up models data onnx mcmc plot torch docs
else
    bin=$SFB_VENV/bin
    mpirun=$bin/mpirun
    [ "$SFB_MPI" != system ] || mpirun=$(command -v mpirun) || fail "SFB_MPI=system, but there is no mpirun on PATH"
fi
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1
cd "$root"

# example RANKS NAME ARGUMENTS...: run a program, and keep its output and its picture.
example() {
    local ranks=$1 name=$2 output=$root/docs/examples/output new=$root/build/example.txt
    shift 2
    mkdir -p "$root/build"
    echo "== mpirun -n $ranks python -m mpi4py $name.py $*"
    {
        echo "$ mpirun -n $ranks python -m mpi4py $name.py${*:+ $*}"
        run_mpi 900 "$ranks" "$bin/python" -m mpi4py "docs/examples/$name.py" --plot "$output/$name.png" "$@"
    } >"$new"
    mv "$new" "$output/$name.txt"
}

if [ "${1:-}" = --examples ]; then
    for name in estimators lasso mcmc dictionary_learning mnist ratings topics; do example 2 "$name"; done
    example 2 metric_learning --components 2 4 8 16 32
    example 2 pytorch_digits --epochs 6
    example 3 rotation
    example 4 lasso_schedules
fi

echo "== building the site"
"$bin/python" -m sphinx --fail-on-warning --keep-going -j auto -q -d build/doctrees -b html docs build/site
"$bin/python" docs/_ext/links.py build/site
echo "written: build/site/index.html"
