#!/usr/bin/env bash
# Run the tests: in one process, then under mpirun with 2, 3, 4 and 5 ranks.
#
# SFB_TEST_RANKS    numbers of ranks (default "2 3 4 5")
# SFB_TEST_SECONDS  hard limit of each run (default 1500)
# SFB_MPI, SFB_VENV, SFB_PYTHON as _setup.sh says; arguments go to pytest
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

set_up models data onnx mcmc plot test
cd "$root"
logs=$(mktemp -d)
trap 'stop_mpi; rm -rf "$logs"' EXIT
limit=${SFB_TEST_SECONDS:-1500}
# BLAS and Numba at one thread a rank: the ranks fill the cores.
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1
# The tests that start mpirun themselves use this one.
export SFB_TEST_MPIRUN=$mpirun
failed=0

# report NAME CODE: print the last line of rank 0 in a run; if the run failed, all of it, and of the others what failed
# or the end.
report() {
    local name=$1 code=$2 rank
    if [ "$code" = 0 ]; then
        tail -n 1 "$logs/$name.0"
        return
    fi
    failed=1
    cat "$logs/$name.0" 2>/dev/null || echo "nothing was printed"
    for rank in "$logs/$name".*; do
        [ "$rank" = "$logs/$name.0" ] && continue
        echo "-- rank ${rank##*.}"
        if grep -qE '^=+ (FAILURES|ERRORS) =+$' "$rank"; then
            sed -nE '/^=+ (FAILURES|ERRORS) =+$/,$p' "$rank" | head -n 300
        else
            tail -n 40 "$rank"
        fi
    done
    echo "== $name: exit code $code"
}

echo "== compiling the kernels"
run_mpi "$limit" 4 "$bin/sfb" warmup # four ranks share it; the first tests are one process

# alone NAME ARGUMENTS...: run tests in one process; its log is NAME.0.
alone() {
    local name=$1
    shift
    timeout --kill-after=10 "$limit" "$bin/python" -m pytest --with-mpi "$@" >"$logs/$name.0" 2>&1 </dev/null
}

echo "== pytest, one process"
code=0
if [ $# -gt 0 ]; then
    alone single "$@" || code=$?
    report single "$code"
else # two parts at the same time, as one process uses one core
    slow=(tests/cli tests/doctor tests/models tests/training tests/test_*.py)
    alone part1 "${slow[@]}" &
    job=$! # stop_mpi ends it
    alone part2 "${slow[@]/#/--ignore=}" tests || code=$?
    report part2 "$code"
    code=0
    wait "$job" || code=$?
    job=
    report part1 "$code"
fi

# Every rank gets a log of its own, as nobody can read four reports at once, and a folder of its own for temporary files,
# as pytest removes those of earlier runs.
rank_to_file='rank=${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${SLURM_PROCID:-0}}}}
log=$1.$rank; shift
export PYTEST_DEBUG_TEMPROOT=$(dirname "$log")/tmp-$(basename "$log").d
mkdir "$PYTEST_DEBUG_TEMPROOT"
exec "$@" >"$log" 2>&1'
for ranks in ${SFB_TEST_RANKS:-2 3 4 5}; do
    echo "== pytest under mpirun, $ranks ranks"
    code=0
    run_mpi "$limit" "$ranks" sh -c "$rank_to_file" sh "$logs/ranks$ranks" \
        "$bin/python" -m mpi4py -m pytest --with-mpi -m mpi "$@" 2>"$logs/mpirun" || code=$?
    [ "$code" = 0 ] || cat "$logs/mpirun"
    report "ranks$ranks" "$code"
done

# Add up the closing lines of all runs: what passed on rank 0, and what failed on any.
find "$logs" -maxdepth 1 -type f -name "*.[0-9]*" -exec awk '
    /(passed|failed|error|skipped).* in [0-9.]+s/ {
        for (i = 2; i <= NF; i++) {
            if ($i ~ /^(failed|error)/) failed += $(i - 1)
            if (FILENAME !~ /[.]0$/) continue
            if ($i ~ /^passed/) passed += $(i - 1)
            if ($i ~ /^skipped/) skipped += $(i - 1)
        }
    }
    END { printf "total: %d passed, %d failed, %d skipped\n", passed, failed, skipped }' {} +
exit $failed
