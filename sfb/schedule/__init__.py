"""Model-parallel work: which variables and blocks ranks work on, where, and when.

The primitives are those of STRADS (Kim et al., EuroSys 2016): a schedule chooses variables, every rank pushes its part
of their updates, and pulls what the ranks have summed.
"""

from sfb.schedule.balance import Costs, cut, loads, move, partition, rebalance
from sfb.schedule.protocol import Layout, Program, Round, Rounds, run
from sfb.schedule.rotation import Block, BlockProgram, Rotation, Sweep, seats
from sfb.schedule.sampling import Priority, Random, RoundRobin, Schedule, StaticBlocks
from sfb.schedule.trace import Span, Trace

__all__ = [
    "Block",
    "BlockProgram",
    "Costs",
    "Layout",
    "Priority",
    "Program",
    "Random",
    "Rotation",
    "Round",
    "RoundRobin",
    "Rounds",
    "Schedule",
    "Span",
    "StaticBlocks",
    "Sweep",
    "Trace",
    "cut",
    "loads",
    "move",
    "partition",
    "rebalance",
    "run",
    "seats",
]
