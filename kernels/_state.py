"""What a rank keeps between calls of the kernels for plain arrays: where one resumes, and which copies are faster.

Copies into slots go through the caches or past them: past them takes half as long again between cores that share a
cache, and a third of the time between others. The bits are the same. So calls of a size take whichever took less time,
and now and then the other.
"""

from sfb.kernels._compile import inner
from sfb.kernels.status import PENDING

__all__ = ["ALLGATHER", "ALLREDUCE", "CHUNKS", "RESUME", "SCATTER", "SMALL", "TERMS", "WORKED"]
__all__ += ["leave", "note", "row_of", "state_words", "streams"]

# The words: the phase that others are to reach, where the call resumes; small calls so far; chunks so far; the
# nanoseconds that this call has worked; a row for each function and bit length of sizes; and from `TERMS` on the
# addresses of what is reduced.
RESUME, SMALL, CHUNKS, WORKED, _ROWS = range(5)
# The words of a row: nanoseconds of a call whose copies go through the caches, and past them, and the number of calls.
_CACHED, _STREAMED, _CALLS, _ROW = range(4)
ALLREDUCE, SCATTER, ALLGATHER, _FUNCTIONS = range(4)
_LENGTHS = 64
TERMS = _ROWS + _ROW * _FUNCTIONS * _LENGTHS

# One in so many calls takes what was slower before; earlier on, those whose number is a power of two.
_RETRY = 64
# The first calls, which take both in turn, and those among them that are slow for other reasons.
_FIRST, _SLOW = 6, 4


def state_words(ranks):
    """Return the words, all 0 at first."""
    return TERMS + ranks


@inner
def row_of(function, nbytes):
    """Return the row of a function and a size."""
    length = 0
    while nbytes > 0:
        nbytes >>= 1
        length += 1
    return _ROWS + _ROW * (_LENGTHS * function + length)


@inner
def streams(state, row):
    """Return whether this call's copies go past the caches."""
    calls = state[row + _CALLS]
    if calls < _FIRST:
        return calls % 2 == 1
    return (state[row + _STREAMED] < state[row + _CACHED]) != (calls % _RETRY == 0 or calls & (calls - 1) == 0)


@inner
def note(state, row, streamed):
    """Note how long this call has worked."""
    word = row + (_STREAMED if streamed else _CACHED)
    known = state[row + _CALLS] >= _SLOW
    slower = known and state[WORKED] > state[word]  # which has many reasons, faster only one
    state[word] = (state[word] + state[WORKED]) // 2 if slower else state[WORKED]
    state[row + _CALLS] += 1


@inner
def leave(state, code):
    """Return what a kernel returns; the next call begins anew unless others are awaited still."""
    if code != PENDING:
        state[RESUME] = 0
    return code
