"""The command sfb soak."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from sfb.cli.common import Bytes, Failure, Finite, json_option, start
from sfb.files import write

__all__ = ["soak"]


@click.command(
    epilog="\b\nExamples:\n  mpirun -n 4 sfb soak --minutes 30\n"
    "  mpirun -n 4 sfb soak --seed 7 --first 1234 --rounds 1       # a round that went wrong, once more"
)
@click.option("-m", "--minutes", type=Finite(0, min_open=True), default=1.0, help="Minutes to run for.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of all that is drawn.")
@click.option("--first", type=click.IntRange(0), default=0, help="Number of the first round.")
@click.option("--rounds", type=click.IntRange(1), help="Most rounds.  [no limit]")
@click.option("--patience", type=Finite(1), default=300.0, metavar="SECONDS",
              help="Time that a round may take before it counts as hanging.")  # fmt: skip
@click.option("--growth", type=Bytes(), default="32MiB", show_default=True, metavar="SIZE",
              help="Memory by which a rank may grow between the first third of the run and its end.")  # fmt: skip
@json_option
def soak(
    minutes: float, seed: int, first: int, rounds: int | None, patience: float, growth: int, json_file: Path | None
) -> int:
    """Call everything at random, beside an oracle, and see that nothing is left behind.

    A round is up to 8 calls on a communicator: exchanges of factors, blocking, nonblocking and persistent, into arrays
    and update rules; plain arrays; stores of every consistency; rotations; communicators and shared arrays that come
    and go; and mistakes, of which all ranks must hear. Sizes, options, nodes and delays are drawn. Results are compared
    with NumPy in float64 and, where that is promised, bit for bit between ranks.

    A line a minute shows progress. Exits with 1 if a call went wrong, which it names with the command that repeats its
    round; if a round does not end; if handles of MPI, descriptors or mappings are left over; or if the memory of a rank
    has grown by more than --growth. What ranks hold at the end is compared with what they held after a third of the
    run, when caches have filled; nothing is compared if 100 rounds take more than half of it.
    """
    # UCX keeps a record of each buffer that is gone, until all of them were so large: 512 MiB if it is not told.
    os.environ.setdefault("UCX_RCACHE_MAX_UNRELEASED", "1M")
    world = start()
    from sfb.runtime.threads import limit_process
    from sfb.soak.run import Config, SoakError
    from sfb.soak.run import soak as run

    limit_process(world)
    try:
        result = run(world, Config(minutes, seed, first, rounds, patience, growth), click.echo)
    except SoakError as error:
        raise Failure(str(error)) from error
    if world.rank == 0:
        if json_file is not None:
            write(json_file, json.dumps(result, indent=1) + "\n")
        for line in _summary(result):
            click.echo(line)
    return int(bool(result["leaks"] or result["memory_grew"]))


def _summary(result: dict) -> list[str]:
    """Return the lines of the end.

    >>> from sfb.cli.soak import _summary
    >>> end = {"memory": 1 << 20, "descriptors": 9, "windows": 2}
    >>> found = {"rounds": 2, "calls": 9, "minutes": 1.0, "errors": 0, "calls_by_kind": {"factors.clipped": 9}}
    >>> found |= {"start": None, "end": [end, end], "leaks": None, "memory_growth": None}
    >>> print("\\n".join(_summary(found)))
    calls      9 in 2 rounds, 1.0 min: 9 factors.clipped
    errors     0
    memory     1.0 MiB a rank at the end
    leaks      not measured: the run was too short
    """
    kinds = ", ".join(f"{count} {name}" for name, count in result["calls_by_kind"].items())
    lines = [
        f"calls      {result['calls']} in {result['rounds']} rounds, {result['minutes']:.1f} min: {kinds}",
        f"errors     {result['errors']}",
    ]
    most = max(each["memory"] for each in result["end"]) / 2**20
    if result["start"] is None:
        return [
            *lines,
            f"memory     {most:.1f} MiB a rank at the end",
            "leaks      not measured: the run was too short",
        ]
    first = max(each["memory"] for each in result["start"]) / 2**20
    growth, bound = (amount / 2**20 for amount in (result["memory_growth_bytes"], result["config"]["growth"]))
    lines.append(
        f"memory     {first:.1f} MiB a rank at the start, {most:.1f} at the end; of one rank at most "
        f"{growth:+.1f} MiB, {'beyond' if result['memory_grew'] else 'within'} the bound of {bound:g} MiB"
    )
    for name in ("descriptors", "mapped", "files", "communicators", "windows", "requests"):
        before, after = (max(each[name] for each in result[when]) for when in ("start", "end"))
        lines.append(f"{name:<14} {before} at the start, {after} at the end")
    found = [f"{more} {name}" for name, more in result["leaks"].items()]
    left = ", ".join([*found, *[f"{growth:.1f} MiB of memory"] * result["memory_grew"]])
    return [*lines, f"leaks      {left or 'none'}"]
