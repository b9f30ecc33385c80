"""Rounds of messages between nodes, by MPI's own functions: from Python each would take several calls.

The functions and handles of MPI are given as numbers, so that nothing here depends on which MPI it is:

    mpi = MPI_Isend, MPI_Irecv, MPI_Testall, the communicator, MPI_BYTE, bytes of a handle

`sfb.runtime.rounds` says what the rounds are. Row i of a plan is the i-th: nodes known before it, nodes learnt in it,
and the ranks from which and to which messages go; the last row says how many nodes there are, which this is, and from
how many bytes on a sum is divided among nodes. The state of a call is `STATE` words, 0 at first: the rounds that are
over, whether messages of the next are under way, their requests, a flag, whether values do not fit, whether all
messages are alike, nanoseconds of work, for those that call these, and room for what MPI says of messages.
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

# Words of a state, more than any MPI needs, and where some of them are.
STATE, REQUESTS, ALIKE, WORK = 24, 2, 6, 7
_FLAG, _UNFIT, _STATUSES = 4, 5, 8

_INT, _WORDS = types.int64, types.Array(types.int64, 1, "C")
_PLAN = types.Array(types.int64, 2, "C")


def _call(count, parameters):
    """Make what calls a C function of so many parameters, ints where they are, else words, by its address."""

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
    """Send so many bytes, and receive up to ``room``; look ``spins`` times more, in the end, whether that is done."""
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
        # What the message waits for may need the core.
        yield_core()


@inner
def reset(state):
    """Make the state that of a call that has not begun, but for what came of the last."""
    state[0] = state[1] = state[_UNFIT] = 0


@inner
def _alike(words, start, head):
    """Return whether the header that begins there equals the first, both of one rank, but for the time it says."""
    same = words[start + DIGEST] == words[DIGEST] and words[start + SIZE] == words[SIZE]
    start += head
    return same and words[start + KIND] == words[head + KIND] and words[start + NBYTES] == words[head + NBYTES]


@kernel([_INT(_WORDS, _PLAN, _WORDS, _INT, _INT, _INT, _WORDS, _WORDS)])
def gather(mpi, plan, state, spins, tag, head, words, starts):
    """Put the messages of all nodes one behind another.

    Args:
        mpi: As above.
        plan: The rounds.
        state: Of the call.
        spins: Looks for a message before this returns.
        tag: Of messages.
        head: Words of a header, of which the last says how many bytes follow.
        words: This node's message, and room for those of others.
        starts: Of nodes + 1 words: 0 and where this node's message ends; then where each message begins and ends.

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
    """Put values, if they are wanted, behind the headers, which have so many words, and return the words of both."""
    nbytes = values.size * values.itemsize if fits else 0
    words[end + NBYTES] = nbytes
    if fits:
        words[end:].view(values.dtype)[: values.size] = values
    return message_words(end, nbytes)


@inner
def _take(words, received, head, known, values, fits):
    """Put the headers of another node's message behind the ``known`` ones, and add the values that follow them.

    Returns:
        Whether there was what belongs there: headers are alike, and behind the last are as many bytes.
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
    """Return where the part of so many values begins and ends that is a node's after halvings, one for a round."""
    low, high = 0, size
    for turn in range(halvings):
        middle = (low + high) // 2
        if node >> turn & 1:
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
    """Gather the headers of all nodes, a power of two of them, and with them add up values, to the same bits on all.

    In the same rounds as `gather`: other nodes may do that meanwhile. If they do, or if they are about something else,
    there is no sum; the headers show it. Arguments and results as of `gather`, but for: ``words``, this node's header,
    then those of all with nothing behind them, and room for the values; ``received``, as much room.

    Few values go whole in each round (recursive doubling). Of many, a node keeps half of its part in each and sends the
    other, and then gathers the parts in as many rounds more (recursive halving and doubling; Thakur, Rabenseifner and
    Gropp, IJHPCA 19(1), 2005, section 4.4).
    """
    at, place = words.ctypes.data, received.ctypes.data
    elements = flat(values)
    size, itemsize = elements.size, elements.itemsize
    count, nodes, home = len(plan) - 1, plan[-1, 0], plan[-1, 1]
    halved = size * itemsize >= plan[-1, 2]
    while state[0] < count:
        turn = state[0]
        known, _, source, target = plan[turn]
        fits = state[_UNFIT] == 0
        low, high = _part(size, home, turn + 1 if halved else 0)
        first, last = _part(size, home ^ known, turn + 1 if halved else 0)
        length = _give(words, known * head, elements[first:last], fits) if state[1] == 0 else 0
        code = _exchange(mpi, state, spins, at, 8 * length, target, place, 8 * received.size, source, tag)
        if code != DONE:
            return code
        if not _take(words, received, head, known, elements[low:high], fits):
            state[_UNFIT] = 1
    # All know by now whether all sum.
    while halved and state[_UNFIT] == 0 and state[0] < 2 * count:
        turn = 2 * count - 1 - state[0]
        known, _, source, target = plan[turn]
        low, high = _part(size, home, turn + 1)
        first, last = _part(size, home ^ known, turn + 1)
        start, length, room = elements.ctypes.data, (high - low) * itemsize, (last - first) * itemsize
        sent, missing = start + low * itemsize, start + first * itemsize
        code = _exchange(mpi, state, spins, sent, length, target, missing, room, source, tag)
        if code != DONE:
            return code
    state[ALIKE] = state[_UNFIT] == 0
    for node in range(1, nodes):
        state[ALIKE] &= _alike(words, node * head, head)
    return DONE
