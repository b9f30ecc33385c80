"""The agreement of the processes of a node, and their waits, by its board: numbered calls, their headers and phases.

The state of a process in call n (`sfb.kernels.header.STATE`) is 2²⁰·n + phase, and only grows. A process stores its
state after the data that it announces, with release semantics, and loads the state of others with acquire semantics.

Importing this module imports Numba and compiles, or loads from its cache.
"""

import time

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from sfb.kernels import header as _header
from sfb.kernels._compile import inner, kernel
from sfb.kernels.header import DIGEST, FAILED, NBYTES, NOTE, PLAIN, SIZE, STATE, WORDS
from sfb.kernels.status import AGREED, DIFFERENT, MIXED, PENDING, UNEVEN

__all__ = [
    "ARRIVED",
    "LAST",
    "join",
    "judge",
    "look",
    "meet",
    "now",
    "reach",
    "reached",
    "slot",
    "yield_core",
]

# The first and the last phase of a call. An algorithm counts its own phases between them.
_PHASES = 1 << 20
ARRIVED, LAST = 1, _PHASES - 1

_MONOTONIC = time.CLOCK_MONOTONIC


def _address(context, builder, array_type, array, index):
    return builder.gep(make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def _load(typing_context, array, index):
    def generate(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], *arguments)
        return builder.load_atomic(pointer, ordering="acquire", align=8)

    return types.int64(array, types.intp), generate


@intrinsic
def _store(typing_context, array, index, value):
    def generate(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1])
        builder.store_atomic(arguments[2], pointer, ordering="release", align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate


@intrinsic
def yield_core(typing_context):
    """Let other processes have the core."""

    def generate(context, builder, signature, arguments):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def now(typing_context):
    """Return nanoseconds of a clock that never goes back."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(64)
        stamp = cgutils.alloca_once(builder, ir.ArrayType(word, 2))
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32), stamp.type])
        function = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
        builder.call(function, [ir.Constant(ir.IntType(32), _MONOTONIC), stamp])
        seconds, rest = (builder.load(cgutils.gep_inbounds(builder, stamp, 0, i)) for i in (0, 1))
        return builder.add(builder.mul(seconds, ir.Constant(word, 10**9)), rest)

    return types.int64(), generate


_BOARD = types.Array(types.int64, 1, "C")
_INT = types.int64


slot = inner(_header.slot)
message_words = inner(_header.message_words)


@inner
def _await(board, index, state, spins, patience):
    """Return whether a word reaches a state within ``spins`` looks; yield the core now and then after ``patience``."""
    tries = 0
    while _load(board, index) < state:
        tries += 1
        if tries > spins:
            return False
        if tries > patience and tries % 8 == 0:
            yield_core()
    return True


@kernel([_INT(_BOARD, _INT, _INT, _INT, _INT, _INT)])
def look(board, processes, me, call, spins, patience):
    """Compare the headers of processes 0 to ``processes`` − 1 with the header of this one.

    Returns:
        A verdict; `PENDING` while a header is missing.
    """
    mine = slot(me, call)
    verdict, plain = AGREED, board[mine + DIGEST] <= PLAIN
    for process in range(processes):
        theirs = slot(process, call)
        if not _await(board, theirs + STATE, _PHASES * call + ARRIVED, spins, patience):
            return PENDING
        if board[theirs + DIGEST] != board[mine + DIGEST]:
            verdict = DIFFERENT
            plain = plain and board[theirs + DIGEST] <= PLAIN
        elif board[theirs + SIZE] != board[mine + SIZE] and verdict == AGREED:
            verdict = UNEVEN
    return MIXED if verdict == DIFFERENT and plain else verdict


@kernel([_INT(_BOARD, _INT, _INT, _INT, _INT, _INT, _INT, _INT, _INT)])
def meet(board, processes, me, call, digest, size, note, spins, patience):
    """Post the header of this process for ``call``, then `look` at the headers of the others."""
    mine = slot(me, call)
    board[mine + DIGEST] = digest
    board[mine + SIZE] = size
    board[mine + NOTE] = note
    _store(board, mine + STATE, _PHASES * call + ARRIVED)
    return look(board, processes, me, call, spins, patience)


@kernel([_INT(_BOARD, _BOARD, _INT, _BOARD)])
def judge(words, processes, head, sizes):
    """Return the verdict on the headers in the messages of nodes.

    Args:
        words: The messages (`sfb.kernels.header`), one behind another.
        processes: The number of processes of each node.
        head: Words of a message before its payload.
        sizes: Receives the sizes of all processes.
    """
    verdict, at, start = AGREED, 0, 0
    plain = words[DIGEST] <= PLAIN
    for node in range(len(processes)):
        for process in range(processes[node]):
            header = start + WORDS * process
            sizes[at] = words[header + SIZE]
            if words[header + DIGEST] != words[DIGEST] or words[header + DIGEST] == FAILED:
                verdict = DIFFERENT
                plain = plain and words[header + DIGEST] <= PLAIN
            elif sizes[at] != sizes[0] and verdict == AGREED:
                verdict = UNEVEN
            at += 1
        start += message_words(head, words[start + head + NBYTES])
    return MIXED if verdict == DIFFERENT and plain else verdict


@kernel([types.void(_BOARD, _INT, _INT, _INT)])
def reach(board, me, call, phase):
    """Announce that this process has reached a phase of a call."""
    _store(board, slot(me, call) + STATE, _PHASES * call + phase)


@kernel([types.boolean(_BOARD, _INT, _INT, _INT, _INT, _INT, _INT)])
def reached(board, first, last, call, phase, spins, patience):
    """Return whether processes ``first`` to ``last`` − 1 have reached a phase of a call, after ``spins`` looks each."""
    for process in range(first, last):
        if not _await(board, slot(process, call) + STATE, _PHASES * call + phase, spins, patience):
            return False
    return True


@kernel([types.boolean(_BOARD, _INT, _INT, _INT, _INT, _INT, _INT)])
def join(board, processes, me, call, phase, spins, patience):
    """Announce a phase of a call, and return whether all processes have `reached` it."""
    _store(board, slot(me, call) + STATE, _PHASES * call + phase)
    return reached(board, 0, processes, call, phase, spins, patience)
