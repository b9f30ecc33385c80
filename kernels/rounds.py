"""Rounds of messages between nodes (`sfb.runtime.rounds`), by MPI's own functions.

In Python each round would take several calls. The kernels take the functions and handles of MPI as numbers, so that
they do not depend on the MPI library:

    mpi = MPI_Isend, MPI_Irecv, MPI_Testall, the communicator, MPI_BYTE, bytes of a handle

A plan has a row for each round: the number of nodes known before, the number of nodes learnt, and the ranks from which
and to which messages go. Its last row holds the number of nodes, this node, and the bytes from which a sum is divided
among nodes. The state of a call is `STATE` words, 0 at first: the number of rounds over, whether messages of the next
round are under way, their requests, MPI's flag, whether values do not fit, whether all messages are alike, nanoseconds
of work, which callers count, and room for MPI's statuses.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sfb.kernels._compile import inner, kernel
from sfb.kernels._vectors import flat
from sfb.kernels.header import DIGEST, KIND, NBYTES, SIZE
from sfb.kernels.status import DONE, PENDING
from sfb.kernels.sync import message_words, yield_core

__all__ = ["ALIKE", "REQUESTS", "STATE", "WORK", "gather", "reset", "sum_values"]

# The words of a state, more than any MPI needs, and the positions of some.
STATE, REQUESTS, ALIKE, WORK = 24, 2, 6, 7
_FLAG, _UNFIT, _STATUSES = 4, 5, 8

_INT, _WORDS = types.int64, types.Array(types.int64, 1, "C")
_PLAN = types.Array(types.int64, 2, "C")


def _call(count, parameters):
    """Make the generator of a call of a C function by its address.

    Args:
        count: The number of its parameters, which are words.
        parameters: The parameters that are ints instead.
    """

    def generate(context, builder, signature, arguments):
        word, number = ir.IntType(64), ir.IntType(32)
        kinds = [number if i in parameters else word for i in range(count)]
        values = [
            builder.trunc(value, number) if kind is number else value
            for kind, value in zip(kinds, arguments[1:], strict=True)
        ]
        pointer = builder.inttoptr(arguments[0], ir.FunctionType(number, kinds).as_pointer())
        return builder.sext(builder.call(pointer, values), word)

    return generate


@intrinsic
def _post(typing_context, function, buffer, nbytes, kind, peer, tag, comm, request):
    """Call MPI_Isend or MPI_Irecv."""
    return types.int64(*[types.int64] * 8), _call(7, (1, 3, 4))


@intrinsic
def _test(typing_context, function, count, requests, flag, statuses):
    """Call MPI_Testall."""
    return types.int64(*[types.int64] * 5), _call(4, (0,))


@inner
def _exchange(mpi, state, spins, sent, length, target, received, room, source, tag):
    """Send ``length`` bytes, receive up to ``room`` bytes, and look up to 1 + ``spins`` times whether both are done."""
    at = state.ctypes.data
    if state[1] == 0:
        for i in range(2):
            function, peer = (mpi[1], source) if i == 0 else (mpi[0], target)
            buffer, nbytes = (received, room) if i == 0 else (sent, length)
            code = _post(function, buffer, nbytes, mpi[4], peer, tag, mpi[3], at + 8 * REQUESTS + i * mpi[5])
            if code != 0:
                return abs(code)
        state[1] = 1
    while True:
        state[_FLAG] = 0
        code = _test(mpi[2], 2, at + 8 * REQUESTS, at + 8 * _FLAG, at + 8 * _STATUSES)
        if code != 0:
            return abs(code)
        if state[_FLAG] != 0:
            state[0] += 1
            state[1] = 0
            return DONE
        if spins <= 0:
            return PENDING
        spins -= 1
        # The sender of the message may need the core.
        yield_core()


@inner
def reset(state):
    """Prepare the state for another call; the results of the last stay."""
    state[0] = state[1] = state[_UNFIT] = 0


@inner
def _alike(words, start, head):
    """Return whether a message of one rank equals the first in digest, size, and kind and bytes of the payload."""
    same = words[start + DIGEST] == words[DIGEST] and words[start + SIZE] == words[SIZE]
    start += head
    return same and words[start + KIND] == words[head + KIND] and words[start + NBYTES] == words[head + NBYTES]


@kernel([_INT(_WORDS, _PLAN, _WORDS, _INT, _INT, _INT, _WORDS, _WORDS)])
def gather(mpi, plan, state, spins, tag, head, words, starts):
    """Gather the messages of all nodes, one behind another.

    Args:
        mpi: MPI's functions and handles.
        plan: The rounds.
        state: The state of the call.
        spins: Looks for a message before the kernel returns.
        tag: The tag of the messages.
        head: Words of the head of a message, the last of which holds the bytes of the payload.
        words: This node's message, and room for the messages of others.
        starts: nodes + 1 words: 0 and the end of this node's message. Receives the words at which messages begin, and
            the end of the last.

    Returns:
        `DONE`; `PENDING`, to be called again; or, above 0, an error code of MPI.
    """
    while state[0] < len(plan) - 1:
        known, learnt, source, target = plan[state[0]]
        at, end = words.ctypes.data, 8 * starts[known]
        room = 8 * words.size - end
        code = _exchange(mpi, state, spins, at, 8 * starts[learnt], target, at + end, room, source, tag)
        if code != DONE:
            return code
        for node in range(known, known + learnt):
            starts[node + 1] = starts[node] + message_words(head, words[starts[node] + head + NBYTES])
    state[ALIKE] = 1
    for node in range(1, plan[-1, 0]):
        state[ALIKE] &= _alike(words, starts[node], head)
    return DONE


@inner
def _give(words, end, values, fits):
    """Write values, if they fit, behind ``end`` words of headers, and return the words of both."""
    nbytes = values.size * values.itemsize if fits else 0
    words[end + NBYTES] = nbytes
    if fits:
        words[end:].view(values.dtype)[: values.size] = values
    return message_words(end, nbytes)


@inner
def _take(words, received, head, known, values, fits):
    """Copy the headers of another node's message behind the ``known`` ones, and add the values that follow them.

    Returns:
        Whether the message fits: its headers are alike, and as many bytes as there are values follow the last.
    """
    words[known * head + NBYTES] = 0
    at, nbytes = 0, 0
    for header in range(known):
        fits = fits and nbytes == 0 and received[at + DIGEST] == words[DIGEST]
        fits = fits and received[at + head + KIND] == words[head + KIND]
        to = (known + header) * head
        words[to : to + head] = received[at : at + head]
        words[to + head + NBYTES] = 0
        nbytes = received[at + head + NBYTES]
        at += message_words(head, nbytes)
    if not fits or nbytes != values.size * values.itemsize:
        return False
    terms = received[known * head :].view(values.dtype)
    for i in range(values.size):
        values[i] += terms[i]
    return True


@inner
def _part(size, node, halvings):
    """Return the range of ``size`` values that a node keeps after so many rounds, each of which halves it."""
    low, high = 0, size
    for step in range(halvings):
        middle = (low + high) // 2
        if node >> step & 1:
            low = middle
        else:
            high = middle
    return low, high


@kernel(
    [
        _INT(_WORDS, _PLAN, _WORDS, _INT, _INT, _INT, _WORDS, _WORDS, types.Array(t, 2, "C"))
        for t in (types.float32, types.float64)
    ]
)
def sum_values(mpi, plan, state, spins, tag, head, words, received, values):
    """Gather the headers of all nodes, and sum their values to the same bits on all; the nodes are a power of two.

    The rounds are those of `gather`, which other nodes may call instead. If they do, or if headers differ, no node
    forms a sum, and the headers show the reason. Arguments and results are those of `gather`, except for ``words``:
    this node's header, then room for the headers of all nodes and for the values; ``received``: as much room.

    Few values travel whole in each round (recursive doubling). Of many values a node keeps half of its range in each
    round, sends the other half, and then gathers the ranges in as many rounds more (recursive halving and doubling;
    Thakur, Rabenseifner and Gropp, IJHPCA 19(1), 2005, section 4.4).
    """
    at, into = words.ctypes.data, received.ctypes.data
    elements = flat(values)
    size, itemsize = elements.size, elements.itemsize
    count, nodes, home = len(plan) - 1, plan[-1, 0], plan[-1, 1]
    halved = size * itemsize >= plan[-1, 2]
    while state[0] < count:
        step = state[0]
        known, _, source, target = plan[step]
        fits = state[_UNFIT] == 0
        low, high = _part(size, home, step + 1 if halved else 0)
        first, last = _part(size, home ^ known, step + 1 if halved else 0)
        length = _give(words, known * head, elements[first:last], fits) if state[1] == 0 else 0
        code = _exchange(mpi, state, spins, at, 8 * length, target, into, 8 * received.size, source, tag)
        if code != DONE:
            return code
        if not _take(words, received, head, known, elements[low:high], fits):
            state[_UNFIT] = 1
    # By now each node knows whether all sum.
    while halved and state[_UNFIT] == 0 and state[0] < 2 * count:
        step = 2 * count - 1 - state[0]
        known, _, source, target = plan[step]
        low, high = _part(size, home, step + 1)
        first, last = _part(size, home ^ known, step + 1)
        start, length, room = elements.ctypes.data, (high - low) * itemsize, (last - first) * itemsize
        sent, missing = start + low * itemsize, start + first * itemsize
        code = _exchange(mpi, state, spins, sent, length, target, missing, room, source, tag)
        if code != DONE:
            return code
    state[ALIKE] = state[_UNFIT] == 0
    for node in range(1, nodes):
        state[ALIKE] &= _alike(words, node * head, head)
    return DONE
