"""Reductions of plain arrays within a node, through memory that its ranks share (a *window*), as single calls.

Importing this module imports Numba and compiles, or loads from its cache.
"""

from numba import types

from sfb.kernels._compile import inner, kernel
from sfb.kernels._lines import LINE, MAX, MIN, PROD, SUM, copy, fence, move, reduce
from sfb.kernels.status import AGREED, DONE, PENDING, UNFIT
from sfb.kernels.sync import ARRIVED, LAST, look, meet, now, reach, reached

__all__ = ["CHUNKS", "FLAT", "MAX", "MIN", "PROD", "SUM"]
__all__ += ["allreduce", "allreduce_shared", "reduce_scatter", "spread", "state_words", "window_bytes"]

# Bytes that every rank reduces for itself, with one wait for the others.
FLAT = 8192

# Bytes of a large slot, of those of a node together, and what they are multiples of.
_SLOT, _SLOTS, _PAGE = 1 << 19, 1 << 25, 1 << 12

# Bytes that are reduced at once where they are stored twice, so that they stay in the first cache.
_BLOCK = 8192

# From so many bytes of results of all ranks together, they go to memory, not to caches that they would not stay in.
_BEYOND = 1 << 24

# Words of the state that a rank keeps between calls: the phase that others are to reach, where the call resumes; small
# calls so far; chunks so far; how long this call has worked; by function and bit length of sizes, the nanoseconds of a
# call with slots in cache and in memory, and the number of calls; and by rank, the address of what is reduced.
_RESUME, _SMALL, CHUNKS, _WORKED, _WAYS = range(5)
_ALLREDUCE, _SCATTER, _SPREAD = range(3)
_TERMS = _WAYS + 3 * 3 * 64

# One in so many calls tries the way that was slower before; earlier on, those whose number is a power of two.
_RETRY = 64


def state_words(ranks):
    """Return the words, all 0 at first, of what a rank keeps between calls."""
    return _TERMS + ranks


def window_bytes(ranks):
    """Return the bytes of a window: for each rank two small slots, a block and two large slots.

    The large ones have 1 MiB, or 32 MiB of all ranks (128 bytes for every two of more than 512 ranks). Slots take
    turns, so that one may be filled while others still read the one before.
    """
    slot = -(-max(LINE * ranks, min(_SLOT, _SLOTS // (2 * ranks))) // _PAGE) * _PAGE
    return ranks * (2 * FLAT + _BLOCK + 2 * slot)


@inner
def _share(length, width, rank):
    """Return where a rank's share of a chunk begins and ends. A rank's shares of all chunks are one place in a slot."""
    return min(rank * width, length), min((rank + 1) * width, length)


@inner
def _width(n, most, ranks, line):
    """Return the elements of a rank's share of a chunk, in whole lines, where a chunk has at most so many."""
    chunks = max(1, -(-n // (most // (ranks * line) * ranks * line)))
    return max(1, -(-n // (chunks * ranks * line))) * line


@inner
def _small_slot(window, ranks, turn, rank, n):
    begin = (turn * ranks + rank) * (FLAT // window.itemsize)
    return window[begin : begin + n]


@inner
def _at(words, ranks, turn, rank, which):
    """Return where the array that a rank reduces lies, or that for its result."""
    return _small_slot(words, ranks, turn, rank, 2)[which]


@inner
def _block(window, ranks, me):
    begin = (2 * ranks * FLAT + me * _BLOCK) // window.itemsize
    return window[begin : begin + _BLOCK // window.itemsize]


@inner
def _slot(window, ranks, turn, rank):
    first = ranks * (2 * FLAT + _BLOCK) // window.itemsize
    chunk = (len(window) - first) // (2 * ranks)
    first += (turn * ranks + rank) * chunk
    return window[first : first + chunk]


@inner
def _fill(window, ranks, me, turn, width, send, streamed):
    """Copy what others reduce of this rank's chunk into its slot."""
    slot, length = _slot(window, ranks, turn, me), len(send)
    start, stop = _share(length, width, me)
    move(send[:start], slot[:start], streamed)
    move(send[stop:], slot[stop:length], streamed)
    if streamed:
        fence()


@inner
def _reduce(window, ranks, me, turn, width, state, op, send, recv, streamed, beyond):
    """Reduce this rank's share of a chunk in the order of ranks, into its slot and ``recv``."""
    start, stop = _share(len(send), width, me)
    slot, terms = _slot(window, ranks, turn, me), state[_TERMS:]
    for rank in range(ranks):
        terms[rank] = (send if rank == me else _slot(window, ranks, turn, rank)).ctypes.data
    step = _BLOCK // slot.itemsize
    for low in range(start, stop, step):
        high = min(low + step, stop)
        reduce(op, terms, low, slot[low:high], streamed)
        reduce(op, terms, low, recv[low:high], beyond)
    if streamed or beyond:
        fence()


@inner
def _fetch(window, ranks, me, turn, width, recv, beyond):
    """Copy what the others have reduced of a chunk."""
    for step in range(1, ranks):
        rank = (me + step) % ranks
        start, stop = _share(len(recv), width, rank)
        move(_slot(window, ranks, turn, rank)[start:stop], recv[start:stop], beyond)
    if beyond:
        fence()


@inner
def _bits(n):
    count = 0
    while n > 0:
        n >>= 1
        count += 1
    return count


@inner
def _way(function, nbytes):
    return _WAYS + 3 * (64 * function + _bits(nbytes))


@inner
def _streams(state, row):
    """Return whether this call's slots go past the caches: whichever took less time, now and then the other.

    Between cores that share a cache that takes half as long again, between others a third of the time. The bits are
    the same.
    """
    calls = state[row + 2]
    if calls < 6:
        return calls % 2 == 1
    return (state[row + 1] < state[row]) != (calls % _RETRY == 0 or calls & (calls - 1) == 0)


@inner
def _note(state, row, streamed):
    """Note how long this call has worked."""
    way = row + streamed
    known = state[row + 2] >= 4  # the first two calls are slow for other reasons
    slower = known and state[_WORKED] > state[way]  # which has many reasons, faster only one
    state[way] = (state[way] + state[_WORKED]) // 2 if slower else state[_WORKED]
    state[row + 2] += 1


@inner
def _leave(state, verdict):
    """Return the verdict; the next call begins anew unless others are awaited still."""
    if verdict != PENDING:
        state[_RESUME] = 0
    return verdict


def _array(t, readonly=False):
    return types.Array(t, 1, "C", readonly=readonly)


_TYPES = (types.float32, types.float64, types.int32, types.int64)
_I = types.int64
_START = [_array(_I), types.UniTuple(_I, 4), _I, _I, _array(_I)]


@kernel([_I(*_START, _array(t), _I, _array(t, readonly=True), _array(t)) for t in _TYPES])
def allreduce(board, place, call, digest, state, window, op, send, recv):
    """Reduce ``send`` of all ranks into ``recv`` of each, if they agree to.

    Args:
        board: Of the node (`sfb.kernels.sync`).
        place: Its ranks, this one's number, looks to wait for, and looks before the core is yielded.
        call: Number of this call.
        digest: What has to be equal on all ranks beside the size.
        state: Of this rank, `STATE` words, 0 at first. The first of them is 0 before a call; while others are awaited,
            the phase that they are to reach.
        window: Of the node, `window_bytes`.
        op: `SUM`, `PROD`, `MAX` or `MIN`.
        send: n elements; ``recv`` itself to reduce in place.
        recv: n elements.

    Returns:
        `DONE`; `PENDING` if others are missing still; a verdict if the ranks do not agree; or `UNFIT`, with nobody
        told, if ``send`` and ``recv`` overlap, differ in size, or are too large.
    """
    ranks, me, spins, patience = place
    n = len(recv)
    nbytes = n * recv.itemsize
    small = nbytes <= FLAT
    width = _width(n, len(_slot(window, ranks, 0, 0)), ranks, LINE // recv.itemsize)
    chunk = width * ranks
    row = _way(_ALLREDUCE, nbytes)
    streamed = not small and _streams(state, row)
    if state[_RESUME] == 0:
        away = send.ctypes.data - recv.ctypes.data
        if len(send) != n or (-nbytes < away < nbytes and away != 0) or 2 * (n // chunk + 2) > LAST:
            return UNFIT
        if small:
            copy(send, _small_slot(window, ranks, state[_SMALL] % 2, me, n))
        else:
            began = now()
            _fill(window, ranks, me, state[CHUNKS] % 2, width, send[:chunk], streamed)
            state[_WORKED] = now() - began
        state[_RESUME] = 1
        verdict = meet(board, ranks, me, call, digest, nbytes, 0, spins, patience)
    elif state[_RESUME] == 1:
        verdict = look(board, ranks, me, call, spins, patience)
    else:
        verdict = AGREED
    if verdict != AGREED:
        return _leave(state, verdict)
    if small:
        terms = state[_TERMS:]
        for rank in range(ranks):
            terms[rank] = _small_slot(window, ranks, state[_SMALL] % 2, rank, n).ctypes.data
        reduce(op, terms, 0, recv, False)
        state[_SMALL] += 1
        return _leave(state, DONE)
    beyond = ranks * nbytes >= _BEYOND
    chunks = (n + chunk - 1) // chunk
    while state[_RESUME] <= 2 * chunks:
        piece, stage = divmod(state[_RESUME] - 1, 2)
        low = piece * chunk
        turn = (state[CHUNKS] + piece) % 2
        if not reached(board, 0, ranks, call, ARRIVED + 2 * piece + stage, spins, patience):
            return PENDING
        began = now()
        if stage == 0:
            part = slice(low, low + chunk)
            _reduce(window, ranks, me, turn, width, state, op, send[part], recv[part], streamed, beyond)
            reach(board, me, call, ARRIVED + 2 * piece + 1)
            if piece + 1 < chunks:
                _fill(window, ranks, me, 1 - turn, width, send[low + chunk : low + 2 * chunk], streamed)
                reach(board, me, call, ARRIVED + 2 * piece + 2)
        else:
            _fetch(window, ranks, me, turn, width, recv[low : low + chunk], beyond)
        state[_WORKED] += now() - began
        state[_RESUME] += 1
    state[CHUNKS] += chunks
    _note(state, row, streamed)
    return _leave(state, DONE)


@kernel([_I(*_START, _array(t), _array(_I), _I, types.UniTuple(_I, 3), _array(t), _array(t)) for t in _TYPES])
def allreduce_shared(board, place, call, digest, state, window, words, op, places, source, target):
    """Reduce arrays that lie in memory which the ranks of a node share, where they lie, if the ranks agree to.

    Arguments and result as of `allreduce`, but for: ``words``, the window as int64; ``places``, elements by which the
    array to be reduced lies behind the first of ``source``, and the array for the result behind that of ``target``, and
    how many elements they have; ``source`` and ``target``, arrays that the ranks share, maybe the same.
    """
    ranks, me, spins, patience = place
    n, turn = places[2], state[_SMALL] % 2
    if state[_RESUME] == 0:
        mine = _small_slot(words, ranks, turn, me, 2)
        mine[0], mine[1] = places[0], places[1]
        state[_RESUME] = 1
        verdict = meet(board, ranks, me, call, digest, n * source.itemsize, 0, spins, patience)
    elif state[_RESUME] == 1:
        verdict = look(board, ranks, me, call, spins, patience)
    else:
        verdict = AGREED
    if verdict != AGREED:
        return _leave(state, verdict)
    if state[_RESUME] == 1:
        terms, results = state[_TERMS:], 1
        for rank in range(ranks):
            terms[rank] = source[_at(words, ranks, turn, rank, 0) :].ctypes.data
            results += rank > 0 and _at(words, ranks, turn, rank, 1) != _at(words, ranks, turn, rank - 1, 1)
        beyond, line = ranks * n * source.itemsize >= _BEYOND, LINE // source.itemsize
        start, stop = _share(n, _width(n, n + ranks * line, ranks, line), me)
        if results == 1:
            first = _at(words, ranks, turn, 0, 1)
            reduce(op, terms, start, target[first + start : first + stop], beyond)
        else:
            block = _block(window, ranks, me)
            for low in range(start, stop, len(block)):
                total = block[: min(len(block), stop - low)]
                reduce(op, terms, low, total, False)
                for rank in range(ranks):
                    first = _at(words, ranks, turn, rank, 1)
                    if rank == 0 or first != _at(words, ranks, turn, rank - 1, 1):
                        move(total, target[first + low : first + low + len(total)], beyond)
        if beyond:
            fence()
        reach(board, me, call, ARRIVED + 1)
        state[_RESUME] = 2
    if not reached(board, 0, ranks, call, ARRIVED + 1, spins, patience):
        return PENDING
    state[_SMALL] += 1
    return _leave(state, DONE)


@inner
def _show(board, me, call, digest, phase, nbytes):
    """Show this rank's header, or a later phase."""
    if phase == ARRIVED:
        meet(board, 0, me, call, digest, nbytes, 0, 0, 0)
    else:
        reach(board, me, call, phase)


@inner
def _seen(board, place, call, phase):
    """Look whether the others have reached a phase, and with the first whether they agree."""
    ranks, me, spins, patience = place
    if phase == ARRIVED:
        return look(board, ranks, me, call, spins, patience)
    return AGREED if reached(board, 0, ranks, call, phase, spins, patience) else PENDING


@kernel([_I(*_START, _I, _array(t), _I, _array(t, readonly=True), _array(t)) for t in _TYPES])
def reduce_scatter(board, place, call, digest, state, phase, window, op, send, recv):
    """Reduce a part of ``send`` of all ranks into ``recv`` of each, if the ranks agree to.

    Arguments and result as of `allreduce`, but for: ``phase``, the first of the call, `ARRIVED` unless the ranks have
    agreed before; ``send``, of as many parts as there are ranks, the last of which may have less than the others, or
    nothing; ``recv``, of this rank's part, maybe it itself.
    """
    ranks, me = place[0], place[1]
    n, line = -(-len(send) // ranks), LINE // recv.itemsize
    width = len(_slot(window, ranks, 0, 0)) // ranks // line * line
    pieces, terms = max(1, (n + width - 1) // width), state[_TERMS:]
    row = _way(_SCATTER, n * recv.itemsize)
    streamed = _streams(state, row)
    while True:
        piece = state[_RESUME] - phase
        if state[_RESUME] > 0:
            verdict = _seen(board, place, call, state[_RESUME])
            if verdict != AGREED:
                return _leave(state, verdict)
        began = now()
        if state[_RESUME] > 0:
            turn = (state[CHUNKS] + piece) % 2
            low, high = piece * width, min(piece * width + width, len(recv))
            for rank in range(ranks):
                if rank == me:
                    terms[rank] = send[me * n + low :].ctypes.data
                else:
                    terms[rank] = _slot(window, ranks, turn, rank)[me * width :].ctypes.data
            reduce(op, terms, 0, recv[low:high], False)
            piece += 1
        else:
            state[_WORKED] = piece = 0
        if piece < pieces:
            slot = _slot(window, ranks, (state[CHUNKS] + piece) % 2, me)
            for rank in range(ranks):
                if rank != me:
                    low = rank * n + piece * width
                    part = send[low : min(low + width, (rank + 1) * n)]
                    move(part, slot[rank * width : rank * width + len(part)], streamed)
            if streamed:
                fence()
        state[_WORKED] += now() - began
        if piece == pieces:
            break
        state[_RESUME] = phase + piece
        _show(board, me, call, digest, phase + piece, n * recv.itemsize)
    state[CHUNKS] += pieces
    _note(state, row, streamed)
    return _leave(state, DONE)


_BYTES = types.uint8


@kernel([_I(*_START, _I, _array(_BYTES), _I, _array(_BYTES, readonly=True), _array(_BYTES))])
def spread(board, place, call, digest, state, phase, window, n, send, recv):
    """Copy ``send`` of all ranks one behind another into ``recv`` of each, if the ranks agree to.

    Arguments and result as of `reduce_scatter`, but for: arrays of bytes; and ``n``, how many a part has, but for the
    last, which may have less or nothing. ``send`` may be this rank's part of ``recv``.
    """
    ranks, me = place[0], place[1]
    width = len(_slot(window, ranks, 0, 0))
    pieces = max(1, (n + width - 1) // width)
    row = _way(_SPREAD, n)
    streamed, beyond = _streams(state, row), ranks * len(recv) >= _BEYOND
    while True:
        piece = state[_RESUME] - phase
        if state[_RESUME] > 0:
            verdict = _seen(board, place, call, state[_RESUME])
            if verdict != AGREED:
                return _leave(state, verdict)
        began = now()
        if state[_RESUME] > 0:
            turn, low, high = (state[CHUNKS] + piece) % 2, piece * width, min(piece * width + width, n)
            for step in range(1, ranks):
                rank = (me + step) % ranks
                move(_slot(window, ranks, turn, rank), recv[rank * n + low : rank * n + high], beyond)
            if beyond:
                fence()
            piece += 1
        else:
            state[_WORKED] = piece = 0
        if piece < pieces:
            part = send[piece * width : piece * width + width]
            move(part, _slot(window, ranks, (state[CHUNKS] + piece) % 2, me)[: len(part)], streamed)
            if streamed:
                fence()
            if send.ctypes.data != recv.ctypes.data + me * n:
                low = me * n + piece * width
                move(part, recv[low : low + len(part)], beyond)
        state[_WORKED] += now() - began
        if piece == pieces:
            break
        state[_RESUME] = phase + piece
        _show(board, me, call, digest, phase + piece, n)
    state[CHUNKS] += pieces
    _note(state, row, streamed)
    return _leave(state, DONE)
