"""Fused exchanges of factors: one call of a kernel does the whole exchange of a rank within a node.

In Python the steps of a small exchange cost more than its work. A kernel exchanges data in memory that the node shares,
and waits for other ranks by the phases of the board (`sfb.kernels.sync`). It goes on as far as it can; while other
ranks are missing it returns `PENDING`, and the next call resumes. A rank writes its data before it posts its header,
and the header says so: if all ranks do this, none waits for data once they agree. `sfb.kernels.eager` has the exchanges
between nodes.

Importing this module imports Numba and compiles, or loads from its cache.
"""

import numpy as np
from numba import types

from sfb.kernels._compile import inner, kernel
from sfb.kernels._parts import FLOATS, SMALL, arguments, array_type, fits, form, take
from sfb.kernels._reductions import reduce
from sfb.kernels._updates import update_dense
from sfb.kernels._views import VIEW, describe, matrix_at, words_at
from sfb.kernels.header import NOTE
from sfb.kernels.status import AGREED, DONE, PENDING, UNFIT
from sfb.kernels.sync import ARRIVED, LAST, look, meet, now, reach, reached, slot

__all__ = ["FIRST", "WAITED", "WORKED", "bind_dense", "bind_node", "dense", "node", "phase"]

# The first phase of an exchange, after the phase in which its ranks agree.
FIRST = ARRIVED + 1

# The words of ``bound``. These change: the stage; nanoseconds of forming and applying the sum, and of waiting for
# headers; the time at which the header was posted; whether all ranks wrote their data before their headers.
_STAGE, WORKED, WAITED, _POSTED, _AHEAD = range(5)
# These stay: the ranks of the node, this rank's number, its looks before it yields its core; S; whether the ranks share
# w, so that all have to finish; the board; memory that the node shares. Then, for `node`, v of all ranks, the first of
# this rank's samples, and the rows that it updates; for `dense`, the rows of a piece and the number of pieces.
_RANKS, _ME, _PATIENCE, _SAMPLES, _SHARED = range(5, 10)
_BOARD = 10
_MEMORY = _BOARD + VIEW
_REST = _MEMORY + VIEW
_LOW, _START, _STOP = range(_REST + VIEW, _REST + VIEW + 3)
_HIGH, _PIECES = range(_REST, _REST + 2)

# The stages before the ranks agree. Later stages count from 1.
_WRITE, _HEADER = 0, -1
# The note of a header on data already written: factors, or a product.
_FACTORS, _PRODUCT = 1, 2


def _bind(ranks, me, patience, samples, shared, board, memory, rest):
    changing = [0] * _RANKS
    return np.array([*changing, ranks, me, patience, samples, shared, *describe(board), *memory, *rest], np.int64)


def bind_node(ranks, me, patience, samples, shared, board, all_u, all_v, low, start, stop):
    """Return ``bound`` of `node`.

    Args:
        ranks: The number of ranks on the node.
        me: This rank's number on the node.
        patience: Looks at a word before the rank yields its core.
        samples: S of this rank.
        shared: Whether the ranks share w, so that each updates its own rows.
        board: The board of the node.
        all_u: m×K, the factors of all ranks, in memory that they share.
        all_v: m×D.
        low: The first of this rank's samples among the m.
        start: The first row of w that this rank updates.
        stop: The end of these rows.
    """
    rest = [*describe(all_v), low, start, stop]
    return _bind(ranks, me, patience, samples, shared, board, describe(all_u), rest)


def bind_dense(ranks, me, patience, samples, shared, board, slabs, high, pieces):
    """Return ``bound`` of `dense`.

    Args:
        ranks: The number of ranks on the node.
        me: This rank's number on the node.
        patience: Looks at a word before the rank yields its core.
        samples: S of this rank.
        shared: Whether the ranks share w, so that each updates its rows of a piece.
        board: The board of the node.
        slabs: (2·ranks)×n, two sets of one slab per rank, used alternately, in memory that the ranks share.
        high: The rows of a piece; the last piece may have fewer.
        pieces: The number of pieces.
    """
    return _bind(ranks, me, patience, samples, shared, board, describe(slabs), [high, pieces])


def phase(bound, pieces=None):
    """Return the phase for which an exchange waits; `LAST` also if it waits for the call that used the memory before.

    Args:
        bound: The words of the exchange.
        pieces: The number of pieces of `dense`; None for `node`.
    """
    stage = int(bound[_STAGE])
    if stage == _HEADER:
        return ARRIVED
    if stage == _WRITE:
        return LAST
    if pieces is None:
        return FIRST if stage == 1 else LAST
    if stage > 3 * pieces:
        return LAST
    piece, step = divmod(stage - 1, 3)
    return FIRST + 2 * piece + step - 1


@inner
def _copy(source, target, first):
    for j in range(source.shape[0]):
        row = target[first + j]
        for c in range(source.shape[1]):
            row[c] = source[j, c]


@inner
def _product(u, v, slab, low, rows, scratch):
    """Form rows of uᵀv in a slab, and return whether the arrays fit."""
    return form(u, v, slab[: rows * v.shape[1]].reshape(rows, v.shape[1]), scratch, low)


@inner
def _vacant(bound, board, user, spins):
    """Return whether all ranks have finished the call that used the node's memory before."""
    return user == 0 or reached(board, 0, bound[_RANKS], user, LAST, spins, bound[_PATIENCE])


@inner
def _agree(bound, board, call, digest, note, spins, stage):
    """Post the header, once, and compare it with the headers of the others; return as `look` does.

    If all ranks agree, the exchange goes on at ``stage``. A ``digest`` of 0 says that the ranks have agreed already.
    """
    ranks, me = bound[_RANKS], bound[_ME]
    if digest == 0:
        verdict = AGREED
    elif bound[_STAGE] == _WRITE:
        bound[_STAGE] = _HEADER
        bound[_POSTED] = now()
        verdict = meet(board, ranks, me, call, digest, bound[_SAMPLES], note, spins, bound[_PATIENCE])
    else:
        verdict = look(board, ranks, me, call, spins, bound[_PATIENCE])
    if verdict == PENDING:
        return verdict
    bound[_STAGE] = _WRITE
    if verdict == AGREED:
        bound[_AHEAD] = digest != 0
        if digest != 0:
            bound[WAITED] = now() - bound[_POSTED]
            for rank in range(ranks):
                if board[slot(rank, call) + NOTE] != note:
                    bound[_AHEAD] = 0
        if bound[_AHEAD] == 0:
            reach(board, me, call, FIRST)
        bound[_STAGE] = stage
    return verdict


def _signature(t):
    i = types.int64
    return i(array_type(i, 1), i, i, i, i, *arguments(t))


@kernel([_signature(t) for t in FLOATS])
def node(bound, spins, call, user, digest, u, v, w, s, t, kind, alpha, beta, p, arrays, scratch):
    """Copy this rank's factors beside those of the others, agree, and take the sum in its rows: w ← rule(w, Σ uᵀv).

    Args:
        bound: The words that `bind_node` returns.
        spins: Looks at a word before the kernel returns.
        call: The number of this call.
        user: The number of the call that used the node's memory before, or 0.
        digest: The digest of the header; 0 if the ranks have agreed already.
        u: S×K, of this rank.
        v: S×D.
        w: K×D.
        s: K×D, the first state of the rule; w if the rule has none.
        t: K×D, the second state; w if the rule has none.
        kind: The rule (`sfb.kernels.rules`).
        alpha: The factor of the sum in a linear rule.
        beta: The factor of w in a linear rule.
        p: The rule's numbers.
        arrays: How many of w, s and t the rule uses.
        scratch: Memory of this thread.

    Returns:
        `DONE`; `PENDING`, to be called again with the same arguments; a verdict if the ranks do not agree; or `UNFIT`,
        with nothing posted.
    """
    board, all_u, all_v = words_at(bound, _BOARD), matrix_at(bound, _MEMORY, w), matrix_at(bound, _REST, w)
    ranks, me, patience = bound[_RANKS], bound[_ME], bound[_PATIENCE]
    if bound[_STAGE] <= _WRITE:
        if bound[_STAGE] == _WRITE:
            if not fits(u, v, w, s, t, bound[_SAMPLES], all_u.shape[1], all_v.shape[1]):
                return UNFIT
            bound[WORKED] = bound[WAITED] = 0
            if not _vacant(bound, board, user, spins):
                return PENDING
            _copy(u, all_u, bound[_LOW])
            _copy(v, all_v, bound[_LOW])
        verdict = _agree(bound, board, call, digest, _FACTORS, spins, 1)
        if verdict != AGREED:
            return verdict
    if bound[_STAGE] == 1:
        if bound[_AHEAD] == 0 and not reached(board, 0, ranks, call, FIRST, spins, patience):
            return PENDING
        began = now()
        take(kind, alpha, beta, p, all_u, all_v, w, s, t, arrays, bound[_START], bound[_STOP], scratch)
        bound[WORKED] += now() - began
        reach(board, me, call, LAST)
        bound[_STAGE] = 2
    if bound[_SHARED] and not reached(board, 0, ranks, call, LAST, spins, patience):
        return PENDING
    bound[_STAGE] = _WRITE
    return DONE


@kernel([_signature(t) for t in FLOATS])
def dense(bound, spins, call, user, digest, u, v, w, s, t, kind, alpha, beta, p, arrays, scratch):
    """Form this rank's product, agree, and sum the products of all ranks in their order, in pieces of rows.

    The rule takes each piece once its sum is there. Arguments and results are those of `node`; `bind_dense` returns
    ``bound``.
    """
    board, slabs = words_at(bound, _BOARD), matrix_at(bound, _MEMORY, w)
    ranks, me, patience = bound[_RANKS], bound[_ME], bound[_PATIENCE]
    high, pieces, shared, columns = bound[_HIGH], bound[_PIECES], bound[_SHARED] != 0, w.shape[1]
    if bound[_STAGE] <= _WRITE:
        if bound[_STAGE] == _WRITE:
            rows = min(high, w.shape[0])
            if rows * columns > slabs.shape[1] or not fits(u, v, w, s, t, bound[_SAMPLES], w.shape[0], columns):
                return UNFIT
            bound[WORKED] = bound[WAITED] = 0
            if not _vacant(bound, board, user, spins):
                return PENDING
            began = now()
            if pieces > 0 and not _product(u, v, slabs[me], 0, rows, scratch):
                return UNFIT
            bound[WORKED] = now() - began
        # The product of the first piece is there: the next stage reduces it.
        verdict = _agree(bound, board, call, digest, _PRODUCT, spins, 2 if pieces > 0 else 1)
        if verdict != AGREED:
            return verdict
    while bound[_STAGE] <= 3 * pieces:
        piece, stage = divmod(bound[_STAGE] - 1, 3)
        low = piece * high
        rows = min(high, w.shape[0] - low)
        set_ = slabs[piece % 2 * ranks : (piece % 2 + 1) * ranks]
        start, stop = rows * me // ranks, rows * (me + 1) // ranks
        ahead = bound[_AHEAD] != 0 and piece == 0 and stage == 1
        if stage == 0:
            began = now()
            if not _product(u, v, set_[me], low, rows, scratch):
                raise RuntimeError(SMALL)
            bound[WORKED] += now() - began
            reach(board, me, call, FIRST + 2 * piece)
        elif not ahead and not reached(board, 0, ranks, call, FIRST + 2 * piece + stage - 1, spins, patience):
            return PENDING
        else:
            began = now()
            total = set_[0][: rows * columns].reshape(rows, columns)
            if stage == 1:
                reduce(set_, start * columns, stop * columns)
            if (stage == 1) == shared:
                first, last = (low + start, low + stop) if shared else (low, low + rows)
                update_dense(kind, p, total, w, s, t, low, first, last, 1.0)
            bound[WORKED] += now() - began
            if stage == 1 and not shared:
                reach(board, me, call, FIRST + 2 * piece + 1)
        bound[_STAGE] += 2 if stage == 1 and shared else 1
    if bound[_STAGE] == 3 * pieces + 1:
        reach(board, me, call, LAST)
        bound[_STAGE] += 1
    if shared and not reached(board, 0, ranks, call, LAST, spins, patience):
        return PENDING
    bound[_STAGE] = _WRITE
    return DONE
