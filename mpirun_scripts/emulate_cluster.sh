#!/usr/bin/env bash
# Run a command on an emulated cluster: nodes are network namespaces of this machine, joined by links of a given rate.
#
#   sudo ./mpirun_scripts/emulate_cluster.sh [-N NODES] [-r RANKS_PER_NODE] [-b RATE] [-s NODE=RATE] COMMAND...
#
# -N  nodes (default 4)      -r  ranks on each (default 1)      -b  rate of each node's link, as tc takes it (default 1gbit)
# -s  another rate for the link of one node, counted from 0; may be repeated
#
# COMMAND runs under the MPICH of $SFB_VENV (default .venv-mpich, made if missing), whose programs come first on PATH:
#   ./mpirun_scripts/emulate_cluster.sh -N 4 sfb bench allreduce -S 1,10,100
# Each node gets its part of the cores. If there are fewer cores than nodes, all nodes share all cores, with one BLAS
# thread a rank: computation then takes longer than on a cluster. The script removes everything at the end.
# SFB_SECONDS  hard limit of the run (default 600)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

usage() {
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
}

nodes=4 per_node=1 rate=1gbit
declare -A rate_of=()
while getopts "N:r:b:s:h" option; do
    case $option in
    N) nodes=$OPTARG ;;
    r) per_node=$OPTARG ;;
    b) rate=$OPTARG ;;
    s)
        [[ $OPTARG =~ ^([0-9]+)=(.+)$ ]] || fail "-s must be NODE=RATE, got '$OPTARG'"
        rate_of[$((10#${BASH_REMATCH[1]}))]=${BASH_REMATCH[2]}
        ;;
    *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || usage
[[ $nodes =~ ^[1-9][0-9]?$ ]] || fail "-N must be 1 to 99 nodes, got '$nodes'"
[[ $per_node =~ ^[1-9][0-9]?$ ]] || fail "-r must be 1 to 99 ranks per node, got '$per_node'"
for node in "${!rate_of[@]}"; do
    [ "$node" -lt "$nodes" ] || fail "-s $node=${rate_of[$node]}: nodes are 0 to $((nodes - 1))"
done
[ "$(id -u)" = 0 ] || fail "network namespaces need root; run this with sudo"
for tool in ip tc unshare taskset; do
    command -v $tool >/dev/null || fail "needs $tool (package iproute2 or util-linux)"
done
[ "$SFB_MPI" = mpich ] || fail "emulates clusters for MPICH only, got SFB_MPI=$SFB_MPI"
[ -x "$SFB_VENV/bin/mpirun" ] && [ -x "$SFB_VENV/bin/sfb" ] || set_up
export PATH=$SFB_VENV/bin:$PATH

tag=sfb$$
subnet=10.$((64 + $$ / 256 % 64)).$(($$ % 256))
files=$(mktemp -d)
cores=$(getconf _NPROCESSORS_ONLN)
names=()

clean_up() {
    local name
    stop_mpi
    for name in "${names[@]}"; do
        ip netns pids "$name" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns delete "$name" 2>/dev/null || true # takes its end of the link with it
    done
    ip link delete "$tag" 2>/dev/null || true
    rm -rf "$files"
}
trap clean_up EXIT

shape() { "$@" tc qdisc add dev "$link" root tbf rate "${rate_of[$i]:-$rate}" burst 128kb latency 100ms; }

ip link add "$tag" type bridge
ip address add "$subnet.254/24" dev "$tag"
ip link set "$tag" up
for ((i = 0; i < nodes; i++)); do
    name=$tag-$i
    names+=("$name")
    ip netns add "$name"
    ip link add "$tag.$i" type veth peer name eth0 netns "$name"
    ip link set "$tag.$i" master "$tag" up
    ip -n "$name" address add "$subnet.$((i + 1))/24" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" link set lo up
    link=$tag.$i shape || fail "tc refuses the rate '${rate_of[$i]:-$rate}'"
    link=eth0 shape ip netns exec "$name"
    echo "$subnet.$((i + 1)):$per_node" >>"$files/hosts"
    if [ "$nodes" -le "$cores" ]; then
        seq -s, "$i" "$nodes" $((cores - 1)) >"$files/cores.$i"
    else
        echo "0-$((cores - 1))" >"$files/cores.$i"
    fi
done

# mpirun calls this in place of ssh: [-options] HOST COMMAND...
cat >"$files/launch" <<LAUNCH
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do shift; done
node=\$((\${1##*.} - 1)); shift
exec ip netns exec $tag-\$node unshare --uts --ipc taskset -c "\$(cat $files/cores.\$node)" \
    sh -c "hostname node\$node; \$*"
LAUNCH
chmod +x "$files/launch"

[ "$nodes" -le "$cores" ] || export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
echo "# $nodes emulated nodes of $per_node rank(s), links of $rate$(for node in "${!rate_of[@]}"; do printf " (node%s: %s)" "$node" "${rate_of[$node]}"; done), $cores cores for all" >&2
mpirun="$SFB_VENV/bin/mpirun"
run_mpi "${SFB_SECONDS:-600}" $((nodes * per_node)) \
    -localhost "$subnet.254" -launcher ssh -launcher-exec "$files/launch" -f "$files/hosts" "$@"
