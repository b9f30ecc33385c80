"""Collectives of plain arrays within a node, through memory that its ranks share (a *window*), as single calls.

Importing this module imports Numba and compiles, or loads from its cache. What depends on the type of elements is one
reduction each (`sfb.kernels._lines`); the rest works on bytes.
"""

from collections import namedtuple

from numba import types

from sfb.kernels._compile import inner, kernel
from sfb.kernels._lines import LINE, MAX, MIN, PROD, SUM, TYPES, address, fence, kind_of, move, nbytes_of, reduce
from sfb.kernels._slots import BLOCK, FLAT, block, large, lay_out, share, small, width_of, window_bytes
from sfb.kernels._state import (
    ALLGATHER,
    ALLREDUCE,
    CHUNKS,
    RESUME,
    SCATTER,
    SMALL,
    TERMS,
    WORKED,
    leave,
    note,
    row_of,
    state_words,
    streams,
)
from sfb.kernels.status import AGREED, DONE, PENDING, UNFIT
from sfb.kernels.sync import ARRIVED, LAST, look, meet, now, reach, reached

__all__ = ["CHUNKS", "FLAT", "MAX", "MIN", "PROD", "SUM"]
__all__ += ["allgather", "allreduce", "allreduce_shared", "reduce_scatter", "state_words", "window_bytes"]

# From so many bytes of results of all ranks together, they go to memory, not to caches that they would not stay in.
_BEYOND = 1 << 24


def _array(t, readonly=False):
    return types.Array(t, 1, "C", readonly=readonly)


_I = types.int64
_BYTES = _array(types.uint8)
# Of each kernel: board, member, call, digest, state.
_START = [_array(_I), types.UniTuple(_I, 4), _I, _I, _array(_I)]


@inner
def _fill(slots, parity, width, send, nbytes, streamed):
    """Copy what others reduce of this rank's chunk into its slot."""
    slot = large(slots, parity, slots.me)
    start, stop = share(nbytes, width, slots.me)
    move(send, slot, start, streamed)
    move(send + stop, slot + stop, nbytes - stop, streamed)
    if streamed:
        fence()


@inner
def _reduce_share(slots, parity, width, state, kind, op, send, recv, nbytes, streamed, beyond):
    """Reduce this rank's share of a chunk in the order of ranks, into its slot and ``recv``."""
    start, stop = share(nbytes, width, slots.me)
    slot, terms = large(slots, parity, slots.me), state[TERMS:]
    for rank in range(slots.ranks):
        terms[rank] = send if rank == slots.me else large(slots, parity, rank)
    for low in range(start, stop, BLOCK):
        length = min(BLOCK, stop - low)
        reduce(kind, op, terms, low, slot + low, length, streamed)
        reduce(kind, op, terms, low, recv + low, length, beyond)
    if streamed or beyond:
        fence()


@inner
def _fetch(slots, parity, width, recv, nbytes, beyond):
    """Copy what the others have reduced of a chunk."""
    for step in range(1, slots.ranks):
        rank = (slots.me + step) % slots.ranks
        start, stop = share(nbytes, width, rank)
        move(large(slots, parity, rank) + start, recv + start, stop - start, beyond)
    if beyond:
        fence()


@inner
def _agree(board, member, call, digest, state, nbytes):
    """Show this rank's header, once, and compare those of all until they agree."""
    ranks, me, spins, patience = member
    if state[RESUME] == 0:
        state[RESUME] = 1
        return meet(board, ranks, me, call, digest, nbytes, 0, spins, patience)
    return look(board, ranks, me, call, spins, patience) if state[RESUME] == 1 else AGREED


@kernel([_I(*_START, _BYTES, _I, _I, _I, _I, _I)], python=False)
def _allreduce(board, member, call, digest, state, window, kind, op, send, recv, nbytes):
    """Do what `allreduce` does with ``nbytes`` bytes at the addresses ``send`` and ``recv``."""
    ranks, me, spins, patience = member
    slots = lay_out(window, ranks, me)
    is_small = nbytes <= FLAT
    width = width_of(nbytes, slots.large, ranks)
    chunk = width * ranks
    row = row_of(ALLREDUCE, nbytes)
    streamed = not is_small and streams(state, row)
    if state[RESUME] == 0:
        overlap = -nbytes < send - recv < nbytes and send != recv
        if overlap or 2 * (nbytes // chunk + 2) > LAST:
            return UNFIT
        if is_small:
            move(send, small(slots, state[SMALL] % 2, me), nbytes, False)
        else:
            began = now()
            _fill(slots, state[CHUNKS] % 2, width, send, min(chunk, nbytes), streamed)
            state[WORKED] = now() - began
    verdict = _agree(board, member, call, digest, state, nbytes)
    if verdict != AGREED:
        return leave(state, verdict)
    if is_small:
        terms = state[TERMS:]
        for rank in range(ranks):
            terms[rank] = small(slots, state[SMALL] % 2, rank)
        reduce(kind, op, terms, 0, recv, nbytes, False)
        state[SMALL] += 1
        return leave(state, DONE)
    beyond = ranks * nbytes >= _BEYOND
    chunks = (nbytes + chunk - 1) // chunk
    while state[RESUME] <= 2 * chunks:
        piece, stage = divmod(state[RESUME] - 1, 2)
        low = piece * chunk
        length = min(chunk, nbytes - low)
        parity = (state[CHUNKS] + piece) % 2
        if not reached(board, 0, ranks, call, ARRIVED + 2 * piece + stage, spins, patience):
            return PENDING
        began = now()
        if stage == 0:
            _reduce_share(slots, parity, width, state, kind, op, send + low, recv + low, length, streamed, beyond)
            reach(board, me, call, ARRIVED + 2 * piece + 1)
            if piece + 1 < chunks:
                low += chunk
                _fill(slots, 1 - parity, width, send + low, min(chunk, nbytes - low), streamed)
                reach(board, me, call, ARRIVED + 2 * piece + 2)
        else:
            _fetch(slots, parity, width, recv + low, length, beyond)
        state[WORKED] += now() - began
        state[RESUME] += 1
    state[CHUNKS] += chunks
    note(state, row, streamed)
    return leave(state, DONE)


@kernel([_I(*_START, _BYTES, _I, _array(t, readonly=True), _array(t)) for t in TYPES])
def allreduce(board, member, call, digest, state, window, op, send, recv):
    """Reduce ``send`` of all ranks into ``recv`` of each, if they agree to.

    Args:
        board: The node's board (`sfb.kernels.sync`).
        member: Ranks of the node, this one's number, looks to wait for others, and looks before the core is yielded.
        call: Number of this call.
        digest: What has to be equal on all ranks beside the size.
        state: This rank's `state_words`, 0 at first. The first word is 0 before a call; while others are awaited, the
            phase that they are to reach.
        window: The node's `window_bytes`.
        op: `SUM`, `PROD`, `MAX` or `MIN`.
        send: n elements; ``recv`` itself to reduce in place.
        recv: n elements.

    Returns:
        `DONE`; `PENDING` if others are missing still; a verdict if the ranks do not agree; or `UNFIT`, with nobody
        told, if ``send`` and ``recv`` overlap, differ in size, or are too large.
    """
    if send.size != recv.size:
        return UNFIT
    to, nbytes = address(recv), nbytes_of(recv)
    return _allreduce(board, member, call, digest, state, window, kind_of(recv), op, address(send), to, nbytes)


@inner
def _offsets(words, ranks, parity, rank):
    """Return the words in which a rank tells where its array and that for its result begin in shared memory."""
    first = (parity * ranks + rank) * (FLAT // 8)
    return words[first : first + 2]


@kernel([_I(*_START, _array(_I), _I, _I, types.UniTuple(_I, 3), _BYTES, _BYTES)])
def allreduce_shared(board, member, call, digest, state, words, kind, op, where, source, target):
    """Reduce arrays that lie in memory which the ranks of a node share, where they lie, if the ranks agree to.

    Arguments and result are those of `allreduce`, except: ``words`` is the window as int64; ``kind`` is the index of
    the elements' type in `sfb.kernels._lines.TYPES`; ``where`` holds the bytes of ``source`` in front of this rank's
    array, the bytes of ``target`` in front of its result, and the bytes of either; ``source`` and ``target`` are
    memory that the ranks share, maybe the same.
    """
    ranks, me, spins, patience = member
    nbytes, parity = where[2], state[SMALL] % 2
    if state[RESUME] == 0:
        mine = _offsets(words, ranks, parity, me)
        mine[0], mine[1] = where[0], where[1]
    verdict = _agree(board, member, call, digest, state, nbytes)
    if verdict != AGREED:
        return leave(state, verdict)
    if state[RESUME] == 1:
        terms, first, results = state[TERMS:], address(target), 1
        for rank in range(ranks):
            terms[rank] = address(source) + _offsets(words, ranks, parity, rank)[0]
            if rank > 0:
                results += _offsets(words, ranks, parity, rank)[1] != _offsets(words, ranks, parity, rank - 1)[1]
        beyond = ranks * nbytes >= _BEYOND
        start, stop = share(nbytes, width_of(nbytes, nbytes + ranks * LINE, ranks), me)
        if results == 1:
            recv = first + _offsets(words, ranks, parity, 0)[1]
            reduce(kind, op, terms, start, recv + start, stop - start, beyond)
        else:
            total = block(lay_out(words, ranks, me))
            for low in range(start, stop, BLOCK):
                length = min(BLOCK, stop - low)
                reduce(kind, op, terms, low, total, length, False)
                for rank in range(ranks):
                    to = _offsets(words, ranks, parity, rank)[1]
                    if rank == 0 or to != _offsets(words, ranks, parity, rank - 1)[1]:
                        move(total, first + to + low, length, beyond)
        if beyond:
            fence()
        reach(board, me, call, ARRIVED + 1)
        state[RESUME] = 2
    if not reached(board, 0, ranks, call, ARRIVED + 1, spins, patience):
        return PENDING
    state[SMALL] += 1
    return leave(state, DONE)


@inner
def _show(board, me, call, digest, phase, nbytes):
    """Show this rank's header, or a later phase."""
    if phase == ARRIVED:
        meet(board, 0, me, call, digest, nbytes, 0, 0, 0)
    else:
        reach(board, me, call, phase)


@inner
def _look(board, member, call, phase):
    """Look whether the others have reached a phase, and in the first whether they agree."""
    ranks, me, spins, patience = member
    if phase == ARRIVED:
        return look(board, ranks, me, call, spins, patience)
    return AGREED if reached(board, 0, ranks, call, phase, spins, patience) else PENDING


# What reduces or gathers parts: kind, op and bytes of a part; then addresses and bytes of what a rank passes and gets.
Parts = namedtuple("Parts", "kind op part send sent recv received")


@inner
def _reduce_piece(slots, parity, state, parts, low, width):
    """Reduce a piece of this rank's part, ``low`` bytes behind its beginning."""
    terms = state[TERMS:]
    for rank in range(slots.ranks):
        own = parts.send + slots.me * parts.part + low
        terms[rank] = own if rank == slots.me else large(slots, parity, rank) + slots.me * width
    nbytes = max(0, min(width, parts.received - low))
    reduce(parts.kind, parts.op, terms, 0, parts.recv + low, nbytes, False)


@inner
def _scatter_piece(slots, parity, parts, low, width, streamed):
    """Copy a piece of the others' parts into this rank's slot."""
    slot = large(slots, parity, slots.me)
    for rank in range(slots.ranks):
        first = rank * parts.part + low
        last = min(first + width, (rank + 1) * parts.part, parts.sent)
        if rank != slots.me and first < last:
            move(parts.send + first, slot + rank * width, last - first, streamed)
    if streamed:
        fence()


@inner
def _gather_piece(slots, parity, parts, low, width, beyond):
    """Copy a piece of all parts to where the result goes: the others' out of their slots."""
    own = parts.recv + slots.me * parts.part
    if parts.send != own:
        move(parts.send + low, own + low, max(0, min(width, parts.sent - low)), beyond)
    for step in range(1, slots.ranks):
        rank = (slots.me + step) % slots.ranks
        first = rank * parts.part + low
        last = min(first + width, (rank + 1) * parts.part, parts.received)
        if first < last:
            move(large(slots, parity, rank), parts.recv + first, last - first, beyond)
    if beyond:
        fence()


@inner
def _give_piece(slots, parity, parts, low, width, streamed):
    """Copy a piece of this rank's part into its slot."""
    move(parts.send + low, large(slots, parity, slots.me), max(0, min(width, parts.sent - low)), streamed)
    if streamed:
        fence()


@kernel([_I(*_START, _I, _BYTES, _I, types.BaseTuple.from_types([_I] * 7, Parts))], python=False)
def _in_pieces(board, member, call, digest, state, phase, window, function, parts):
    """Do what `reduce_scatter` and `allgather` do, piece after piece of the parts."""
    ranks, me = member[0], member[1]
    slots = lay_out(window, ranks, me)
    width = slots.large // ranks // LINE * LINE if function == SCATTER else slots.large
    pieces = max(1, (parts.part + width - 1) // width)
    row = row_of(function, parts.part)
    streamed, beyond = streams(state, row), ranks * parts.received >= _BEYOND
    while True:
        piece = state[RESUME] - phase
        if state[RESUME] > 0:
            verdict = _look(board, member, call, state[RESUME])
            if verdict != AGREED:
                return leave(state, verdict)
        began = now()
        parity, low = (state[CHUNKS] + piece) % 2, piece * width
        if state[RESUME] == 0:
            state[WORKED], piece = 0, -1
        elif function == SCATTER:
            _reduce_piece(slots, parity, state, parts, low, width)
        else:
            _gather_piece(slots, parity, parts, low, width, beyond)
        piece += 1
        parity, low = (state[CHUNKS] + piece) % 2, piece * width
        if piece < pieces and function == SCATTER:
            _scatter_piece(slots, parity, parts, low, width, streamed)
        elif piece < pieces:
            _give_piece(slots, parity, parts, low, width, streamed)
        state[WORKED] += now() - began
        if piece == pieces:
            break
        state[RESUME] = phase + piece
        _show(board, me, call, digest, phase + piece, parts.part)
    state[CHUNKS] += pieces
    note(state, row, streamed)
    return leave(state, DONE)


@inner
def _length(whole, part, me):
    """Return the bytes of a rank's part, of parts of ``part`` bytes of which the last ones may be shorter."""
    return max(0, min(part, whole - me * part))


@inner
def _apart(first, first_bytes, second, second_bytes):
    """Return whether two addresses with so many bytes share no memory."""
    return first + first_bytes <= second or second + second_bytes <= first


@kernel([_I(*_START, _I, _BYTES, _I, _array(t, readonly=True), _array(t)) for t in TYPES])
def reduce_scatter(board, member, call, digest, state, phase, window, op, send, recv):
    """Reduce a part of ``send`` of all ranks into ``recv`` of each, if the ranks agree to.

    Arguments and result are those of `allreduce`, except: ``phase`` is the first phase of the call, `ARRIVED` unless
    the ranks have agreed before; ``send`` has as many parts as there are ranks, the last of which may have fewer
    elements than the others, or none; ``recv`` has the elements of this rank's part, and may be that part itself.
    """
    ranks, me = member[0], member[1]
    part = (send.size + ranks - 1) // ranks * recv.itemsize
    given, sent, to, received = address(send), nbytes_of(send), address(recv), nbytes_of(recv)
    fits = received == _length(sent, part, me) and (to == given + me * part or _apart(given, sent, to, received))
    if not fits:
        return UNFIT
    parts = Parts(kind_of(recv), op, part, given, sent, to, received)
    return _in_pieces(board, member, call, digest, state, phase, window, SCATTER, parts)


@kernel([_I(*_START, _I, _BYTES, _array(t, readonly=True), _array(t)) for t in TYPES])
def allgather(board, member, call, digest, state, phase, window, send, recv):
    """Copy ``send`` of all ranks one behind another into ``recv`` of each, if the ranks agree to.

    Arguments and result are those of `reduce_scatter`, except: ``recv`` has as many parts as there are ranks, the last
    of which may have fewer elements than the others, or none; ``send`` has the elements of this rank's part, and may be
    that part itself, or all of ``recv``.
    """
    ranks, me = member[0], member[1]
    part = (recv.size + ranks - 1) // ranks * recv.itemsize
    given, sent, to, received = address(send), nbytes_of(send), address(recv), nbytes_of(recv)
    own, length = to + me * part, _length(received, part, me)
    if given == to and sent == received:
        given, sent = own, length
    fits = sent == length and (given == own or _apart(given, sent, to, received))
    if not fits:
        return UNFIT
    parts = Parts(0, SUM, part, given, sent, to, received)
    return _in_pieces(board, member, call, digest, state, phase, window, ALLGATHER, parts)
