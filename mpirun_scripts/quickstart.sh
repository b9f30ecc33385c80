#!/usr/bin/env bash
# Train a network on real digits on several ranks, by MPI's own Allreduce and over sufficient factors.
#
# SFB_RANKS    ranks to train on (default 4)
# SFB_MPI, SFB_VENV, SFB_PYTHON as _setup.sh says
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

ranks=${SFB_RANKS:-4}
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "SFB_RANKS must be a number of ranks, got '$ranks'"
set_up models plot
results=$root/results
mkdir -p "$results"

echo "== environment of the run"
run_mpi 120 "$ranks" "$bin/sfb" info
run_mpi 900 4 "$bin/sfb" warmup # four ranks share the compilation, however many train

for comm in mpi auto; do
    echo "== training, gradients by --comm $comm"
    run_mpi 900 "$ranks" "$bin/sfb" train mlp --data mnist --comm "$comm" --epochs 4 -J "$results/$comm.json"
done

echo "== comparison"
"$bin/sfb" compare "$results/mpi.json" "$results/auto.json" \
    -J "$results/quickstart.json" --plot "$results/quickstart.png"
echo "written: $results/quickstart.json, $results/quickstart.png"
