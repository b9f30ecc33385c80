"""Rounds of messages between nodes (`sfb.runtime.rounds`), by MPI's own functions.

In Python each round would take several calls. The kernels take the functions and handles of MPI as numbers, so that
they do not depend on the MPI library:

    mpi = MPI_Isend, MPI_Irecv, MPI_Testall, the communicator, MPI_BYTE, bytes of a handle

A plan has a row for each round: the number of nodes known before, the number of nodes learnt, and the ranks from which
and to which messages go. Its last row holds the number of nodes, this node, the bytes from which a sum is divided
among nodes, and whether messages have checksums. The state of a call is `STATE` words, 0 at first: the number of rounds
over, whether messages of the next round are under way, their requests, MPI's flag, whether values do not fit, whether
all messages are alike, nanoseconds of work, which callers count, room for MPI's statuses, and where a message was
damaged.

A node that finds a message damaged puts heads with the digest `FAULT` in the place of it and of those behind it, and
goes on: others wait for its messages, and those that it reaches learn of the damage. The note of such a head, and the
state, hold the node that found the damage, times 2³², and the rank that sent the message.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sfb.kernels._compile import inner, kernel
from sfb.kernels._vectors import flat
from sfb.kernels.checksum import checksum
from sfb.kernels.header import CALL, DIGEST, FAULT, KIND, NBYTES, NOTE, ROUND, SIZE, STAMP, SUM, UNLIKE, stamp
from sfb.kernels.status import DAMAGED, DONE, PENDING
from sfb.kernels.sync import message_words, yield_core

__all__ = ["ALIKE", "REQUESTS", "STATE", "WORK", "WRONG", "gather", "reset", "sum_values"]

# The words of a state, more than any MPI needs, and the positions of some.
STATE, REQUESTS, ALIKE, WORK, WRONG = 25, 2, 6, 7, 24
_FLAG, _UNFIT, _STATUSES = 4, 5, 8

_STAMP = stamp(ROUND)

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
    """Return whether a message of one rank equals the first in digest, kind and bytes of the payload, and size.

    Sizes may differ if the kind says so.
    """
    same = words[start + SIZE] == words[SIZE] or words[head + KIND] & UNLIKE != 0
    same = same and words[start + DIGEST] == words[DIGEST]
    start += head
    return same and words[start + KIND] == words[head + KIND] and words[start + NBYTES] == words[head + NBYTES]


@inner
def _sum_of(words, start, head, checked):
    """Return the checksum of a message, without the word that holds it; 0 if messages have none."""
    if checked == 0:
        return 0
    at, payload = words.ctypes.data + 8 * start, 8 * (message_words(head, words[start + head + NBYTES]) - head)
    return checksum(at + 8 * head, payload, checksum(at, 8 * (head + SUM), 0))


@inner
def _seal(words, start, head, number, checked):
    """Write the format, the number of the call and the checksum of a message."""
    words[start + head + STAMP], words[start + head + CALL] = _STAMP, number
    words[start + head + SUM] = _sum_of(words, start, head, checked)


@inner
def _sound(words, start, head, number, checked):
    """Return whether a message is one of these rounds, lies in the words that there are, and is undamaged."""
    end = start + head
    if end > words.size or words[end + STAMP] != _STAMP or words[end + CALL] != number:
        return False
    if words[end + NBYTES] < 0 or words[end + NBYTES] > 8 * (words.size - end):
        return False
    return words[end + SUM] == _sum_of(words, start, head, checked)


@inner
def _replace(words, start, head, number, checked, note):
    """Put the head of a fault in the place of a message."""
    words[start : start + head] = 0
    words[start + DIGEST], words[start + NOTE] = FAULT, note
    _seal(words, start, head, number, checked)


@inner
def _note(state, note):
    """Note the first fault."""
    if state[WRONG] == 0:
        state[WRONG] = note


@kernel([_INT(_WORDS, _PLAN, _WORDS, _INT, _INT, _INT, _WORDS, _WORDS)])
def gather(mpi, plan, state, spins, tag, head, words, starts):
    """Gather the messages of all nodes, one behind another.

    Args:
        mpi: MPI's functions and handles.
        plan: The rounds.
        state: The state of the call.
        spins: Looks for a message before the kernel returns.
        tag: The tag of the messages.
        head: Words of the head of a message.
        words: This node's message, which is sealed here, and room for the messages of others.
        starts: nodes + 1 words: 0 and the end of this node's message. Receives the words at which messages begin, and
            the end of the last.

    Returns:
        `DONE`; `PENDING`, to be called again; `DAMAGED`; or, above 0, an error code of MPI.
    """
    checked, home = plan[-1, 3], plan[-1, 1]
    if state[0] == 0 and state[1] == 0:
        _seal(words, 0, head, tag, checked)
    while state[0] < len(plan) - 1:
        known, learnt, source, target = plan[state[0]]
        at, end = words.ctypes.data, 8 * starts[known]
        room = 8 * words.size - end
        code = _exchange(mpi, state, spins, at, 8 * starts[learnt], target, at + end, room, source, tag)
        if code != DONE:
            return code
        sound = True
        for node in range(known, known + learnt):
            start = starts[node]
            sound = sound and _sound(words, start, head, tag, checked)
            if not sound:
                _note(state, home << 32 | source)
                if start + head > words.size:
                    return DAMAGED
                _replace(words, start, head, tag, checked, home << 32 | source)
            elif words[start + DIGEST] == FAULT:
                _note(state, words[start + NOTE])
            starts[node + 1] = start + message_words(head, words[start + head + NBYTES])
    state[ALIKE] = 1
    for node in range(1, plan[-1, 0]):
        state[ALIKE] &= _alike(words, starts[node], head)
    return DAMAGED if state[WRONG] != 0 else DONE


@inner
def _give(words, end, values, fits, head, number, checked):
    """Write values, if they fit, behind ``end`` words of heads; seal the last, and return the words of all."""
    nbytes = values.size * values.itemsize if fits else 0
    words[end + NBYTES] = nbytes
    if fits:
        words[end:].view(values.dtype)[: values.size] = values
    _seal(words, end - head, head, number, checked)
    return message_words(end, nbytes)


@inner
def _take(words, received, head, known, values, fits, state, number, checked, note):
    """Copy the heads of another node's message behind the ``known`` ones, and add the values that follow them.

    Returns:
        Whether the message fits: it is undamaged, its heads are alike, and as many bytes as there are values follow the
        last.
    """
    words[known * head + NBYTES] = 0
    _seal(words, (known - 1) * head, head, number, checked)
    at, nbytes, sound = 0, 0, True
    for header in range(known):
        to = (known + header) * head
        sound = sound and _sound(received, at, head, number, checked)
        if not sound:
            _note(state, note)
            _replace(words, to, head, number, checked, note)
            continue
        fits = fits and nbytes == 0 and received[at + DIGEST] == words[DIGEST]
        fits = fits and received[at + head + KIND] == words[head + KIND]
        words[to : to + head] = received[at : at + head]
        words[to + head + NBYTES] = 0
        _seal(words, to, head, number, checked)
        if words[to + DIGEST] == FAULT:
            _note(state, words[to + NOTE])
        nbytes = received[at + head + NBYTES]
        at += message_words(head, nbytes)
    if not (sound and fits) or nbytes != values.size * values.itemsize:
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
    count, nodes, home, checked = len(plan) - 1, plan[-1, 0], plan[-1, 1], plan[-1, 3]
    if state[0] == 0 and state[1] == 0:
        words[head + NBYTES] = 0
    halved = size * itemsize >= plan[-1, 2]
    while state[0] < count:
        step = state[0]
        known, _, source, target = plan[step]
        fits = state[_UNFIT] == 0
        low, high = _part(size, home, step + 1 if halved else 0)
        first, last = _part(size, home ^ known, step + 1 if halved else 0)
        length = 0
        if state[1] == 0:
            length = _give(words, known * head, elements[first:last], fits, head, tag, checked)
        code = _exchange(mpi, state, spins, at, 8 * length, target, into, 8 * received.size, source, tag)
        if code != DONE:
            return code
        note = home << 32 | source
        if not _take(words, received, head, known, elements[low:high], fits, state, tag, checked, note):
            state[_UNFIT] = 1
    # By now each node knows whether all sum. One that knows of damage goes on, as others may not.
    begin = nodes * head
    while halved and (state[_UNFIT] == 0 or state[WRONG] != 0) and state[0] < 2 * count:
        step = 2 * count - 1 - state[0]
        known, _, source, target = plan[step]
        low, high = _part(size, home, step + 1)
        first, last = _part(size, home ^ known, step + 1)
        # A node has sent messages of this call to the same peer before.
        length, number = 0, tag + (step + 1 << 32)
        if state[1] == 0:
            sent = words[begin:]
            sent[:head] = words[:head]
            if state[WRONG] != 0:
                sent[DIGEST], sent[NOTE] = FAULT, state[WRONG]
            length = _give(sent, head, elements[low:high], True, head, number, checked)
        code = _exchange(mpi, state, spins, at + 8 * begin, 8 * length, target, into, 8 * received.size, source, tag)
        if code != DONE:
            return code
        nbytes = (last - first) * itemsize
        if not _sound(received, 0, head, number, checked) or received[head + NBYTES] != nbytes:
            _note(state, home << 32 | source)
        elif received[DIGEST] == FAULT:
            _note(state, received[NOTE])
        else:
            elements[first:last] = received[head:].view(values.dtype)[: last - first]
    state[ALIKE] = state[_UNFIT] == 0 and state[WRONG] == 0
    for node in range(1, nodes):
        state[ALIKE] &= _alike(words, node * head, head)
    return DAMAGED if state[WRONG] != 0 else DONE
