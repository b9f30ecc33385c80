"""Text in the format of LIBSVM, parsed into the arrays of a sparse matrix.

Importing this module imports Numba and compiles, or loads from its cache.
"""

import numpy as np
from numba import types

from sfb.kernels._compile import inner, kernel

__all__ = ["FAULT", "FULL", "PARSED", "parse"]

# What `parse` returns first: all is parsed; a line is malformed; ``odd`` is full.
PARSED, FAULT, FULL = 0, 1, 2

_EXACT_POWER = 22  # powers of ten up to this one are float64 without rounding
_LARGEST_POWER = 288  # products of these powers and 19 digits are normal numbers of float64
_POWERS = np.array([float(f"1e{power}") for power in range(_LARGEST_POWER + 1)])
_EXACT_WHOLE = 1 << 53
_DIGITS = 19  # that uint64 holds
_MOST_INDEX = (1 << 31) - 2  # so that the number of features fits in int32
_DOUBT = 2.0**-50  # beyond the relative error of two roundings, with a margin

_TAB, _NEWLINE, _RETURN, _SPACE, _HASH, _PLUS, _MINUS, _DOT, _ZERO, _NINE, _COLON = (ord(c) for c in "\t\n\r #+-.09:")
_E, _Q, _I, _D = (ord(c) for c in "eqid")
_LOWER = 0x20  # the bit that makes an ASCII letter lower case


@inner
def _digit(c):
    return _ZERO <= c <= _NINE


@inner
def _blank(c):
    return c == _SPACE or (_TAB <= c <= _RETURN and c != _NEWLINE)


@inner
def _ends(text, at):
    """Return whether a field ends before this position."""
    return at >= text.size or text[at] == _NEWLINE or text[at] == _HASH or _blank(text[at])


@inner
def _number(text, at):
    """Parse a decimal number.

    Returns:
        The value; the position after the number; 2 if the value is the nearest float64, 1 if it lies within `_DOUBT` of
        the number, 0 if this is no decimal number or a very large or small one.
    """
    size = text.size
    negative = at < size and text[at] == _MINUS
    if at < size and (text[at] == _MINUS or text[at] == _PLUS):
        at += 1
    whole = np.uint64(0)
    digits = 0
    power = 0
    found = False
    cut = False
    after = False  # the decimal point
    while at < size:
        c = text[at]
        if _digit(c):
            found = True
            if digits < _DIGITS:
                whole = whole * np.uint64(10) + np.uint64(c - _ZERO)
                if whole > 0:
                    digits += 1
                power -= after
            else:
                cut = True
                power += not after
        elif c == _DOT and not after:
            after = True
        else:
            break
        at += 1
    if not found:
        return 0.0, at, 0
    if at < size and (text[at] | _LOWER) == _E:
        at += 1
        down = at < size and text[at] == _MINUS
        if at < size and (text[at] == _MINUS or text[at] == _PLUS):
            at += 1
        if at >= size or not _digit(text[at]):
            return 0.0, at, 0
        shift = 0
        while at < size and _digit(text[at]):
            shift = min(shift * 10 + np.int64(text[at] - _ZERO), 1 << 20)
            at += 1
        power += -shift if down else shift
    value = np.float64(whole)
    trust = 1
    if whole == 0:
        trust = 2
    elif abs(power) > _LARGEST_POWER:
        return 0.0, at, 0
    else:
        if power >= 0:
            value *= _POWERS[power]
        else:
            value /= _POWERS[-power]
        if whole <= _EXACT_WHOLE and abs(power) <= _EXACT_POWER and not cut:
            trust = 2
    return -value if negative else value, at, trust


@inner
def _is_query(text, at):
    """Return whether a field begins with "qid:"."""
    return (
        at + 3 < text.size and text[at] == _Q and text[at + 1] == _I and text[at + 2] == _D and text[at + 3] == _COLON
    )


def _array(t, dimensions=1, readonly=False):
    return types.Array(t, dimensions, "C", readonly=readonly)


@kernel(
    [
        types.UniTuple(types.int64, 6)(
            _array(types.uint8, readonly=True),
            types.int64,
            _array(types.float64),
            _array(types.int32),
            _array(types.int32),
            _array(types.float32),
            _array(types.int64, 2),
        )
    ]
)
def parse(text, base, labels, starts, columns, values, odd):
    """Parse whole lines, a sample a line: LABEL INDEX:VALUE INDEX:VALUE and so on, then maybe a comment after "#".

    Labels and values become what Python's ``float`` makes of them, values rounded to float32 then, except for those
    listed in ``odd``.

    Args:
        text: The bytes of the lines.
        base: The least index, 0 or 1.
        labels: Receives the labels; one a line at most.
        starts: Receives where each sample begins among the values, and where the last ends.
        columns: Receives indices less ``base``; one a colon at most.
        values: Receives the values.
        odd: A row for each label and value that the caller parses: the position among the values, or −1 less the number
            of the sample for its label; where its text begins and ends.

    Returns:
        `PARSED`, `FAULT` or `FULL`; the number of samples, of values, and of rows of ``odd``; the largest column, −1 if
        there is none; the number of fields "qid:…", which are passed over.
    """
    size = text.size
    at = 0
    row = 0
    count = 0
    odds = 0
    largest = -1
    queries = 0
    status = PARSED
    while at < size:
        while at < size and _blank(text[at]):
            at += 1
        if not _ends(text, at):
            begin = at
            label, at, trust = _number(text, at)
            if trust < 2 or not _ends(text, at):
                while not _ends(text, at):
                    at += 1
                if odds == odd.shape[0]:
                    status = FULL
                    break
                odd[odds, 0] = -1 - row
                odd[odds, 1] = begin
                odd[odds, 2] = at
                odds += 1
            labels[row] = label
            starts[row] = count
            row += 1
            before = -1
            while True:
                while at < size and _blank(text[at]):
                    at += 1
                if _ends(text, at):
                    break
                if _is_query(text, at):
                    queries += 1
                    while not _ends(text, at):
                        at += 1
                    continue
                begin = at
                column = -base
                while at < size and _digit(text[at]) and column <= _MOST_INDEX:
                    column = column * 10 + 9 * base + np.int64(text[at] - _ZERO)  # of the index: less base, once
                    at += 1
                if at == begin or at >= size or text[at] != _COLON or column <= before or column > _MOST_INDEX:
                    status = FAULT
                    break
                at += 1
                before = column
                begin = at
                if _ends(text, at):
                    status = FAULT
                    break
                value, at, trust = _number(text, at)
                exact = np.float32(value)
                sure = trust == 2 or (
                    trust == 1 and np.float32(value - value * _DOUBT) == np.float32(value + value * _DOUBT)
                )
                if not sure or not _ends(text, at):
                    while not _ends(text, at):
                        at += 1
                    if odds == odd.shape[0]:
                        status = FULL
                        break
                    odd[odds, 0] = count
                    odd[odds, 1] = begin
                    odd[odds, 2] = at
                    odds += 1
                columns[count] = column
                values[count] = exact
                count += 1
            if status != PARSED:
                break
            largest = max(largest, before)
        while at < size and text[at] != _NEWLINE:
            at += 1
        at += 1
    starts[row] = count
    return status, row, count, odds, largest, queries
