"""Products of factors whose v is sparse, and update rules that take them; the work follows the non-zeros of v."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any, NamedTuple

import numpy as np

from sfb.kernels._arguments import check_arrays, check_rows, states_of
from sfb.kernels._scratch import scratch
from sfb.kernels._threads import share
from sfb.kernels.norms import norm_from
from sfb.kernels.rules import ASSIGN, SGD, Rule, sgd
from sfb.kernels.stages import compiled

__all__ = [
    "MOST_COLUMNS",
    "Parts",
    "Product",
    "accumulate",
    "message_words",
    "norm",
    "order",
    "order_bytes",
    "pack",
    "parts_of",
    "rebuild",
    "reserve",
    "scaled",
    "unpack",
    "update",
]

# Columns of v are numbered by int32.
MOST_COLUMNS = (1 << 31) - 1
# Most bits of a digit by which non-zeros are ordered.
_DIGIT = 11
# A rule with states takes single columns, rather than all, if fewer than one in so many have non-zeros.
_FEW = 8
# From this to its inverse, sums of squares in float64 have lost nothing to underflow or overflow.
_LEAST = 2.0**-960


class Parts(NamedTuple):
    """Factors of one rank or of several, in the order of ranks, v in CSR form.

    Attributes:
        shape: (K, D).
        table: Int64, a row for each rank: its number of samples, and where its part of each array below begins.
        u: Elements, S rows of K for each rank.
        starts: Int64, S+1 for each rank: where each sample begins among the non-zeros of the rank, and their number.
        columns: Int32, the column of each non-zero.
        values: Elements, the value of each non-zero.
        depth: The samples of all ranks.
        nonzeros: The non-zeros of all ranks.
    """

    shape: tuple[int, int]
    table: np.ndarray
    u: np.ndarray
    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    depth: int
    nonzeros: int


class Product(NamedTuple):
    """A product uᵀv whose non-zeros of v are ordered by column, those of a column by sample.

    Attributes:
        shape: (K, D).
        depth: The number of samples.
        table: As in `Parts`.
        u: As in `Parts`.
        touched: Int32, the columns of v with non-zeros, ascending.
        begins: Int64, where each of these begins among the non-zeros, and the number of these.
        samples: Int32, the sample of each non-zero.
        values: The value of each non-zero.
    """

    shape: tuple[int, int]
    depth: int
    table: np.ndarray
    u: np.ndarray
    touched: np.ndarray
    begins: np.ndarray
    samples: np.ndarray
    values: np.ndarray


def parts_of(u: np.ndarray, v: Any) -> Parts:
    """Return the factors of one rank.

    Args:
        u: S×K, C-contiguous float32 or float64.
        v: S×D SciPy CSR matrix or array of the same type, in canonical form.
    """
    nonzeros = int(v.indptr[-1])
    return Parts(
        (u.shape[1], v.shape[1]),
        np.array([[len(u), 0, 0, 0, 0]]),
        u.reshape(-1),
        np.ascontiguousarray(v.indptr, np.int64),
        np.ascontiguousarray(v.indices[:nonzeros], np.int32),
        np.ascontiguousarray(v.data[:nonzeros]),
        len(u),
        nonzeros,
    )


def message_words(samples: Any, nonzeros: Any, rows: int, itemsize: int) -> Any:
    """Return the words of 8 bytes that `pack` fills: starts of samples, u, columns and values, each padded to a word.

    Args:
        samples: S, a number or an array of numbers.
        nonzeros: The non-zeros of v, likewise.
        rows: K.
        itemsize: Bytes of an element.

    >>> from sfb.kernels.sparse import message_words
    >>> message_words(2, 5, 3, 4)  # 3 starts, 6 elements of u, 5 columns, 5 values
    12
    """
    return samples + 1 + _words(samples * rows * itemsize) + _words(nonzeros * 4) + _words(nonzeros * itemsize)


def pack(u: np.ndarray, v: Any, words: np.ndarray) -> None:
    """Write the factors of a rank into int64 ``words``, as many as `message_words` says."""
    samples, nonzeros = len(u), int(v.indptr[-1])
    at = samples + 1
    words[:at] = v.indptr
    for values, dtype in ((u.reshape(-1), u.dtype), (v.indices[:nonzeros], np.int32), (v.data[:nonzeros], u.dtype)):
        size = _words(values.size * np.dtype(dtype).itemsize)
        words[at : at + size].view(dtype)[: values.size] = values
        at += size


def unpack(
    words: np.ndarray,
    samples: np.ndarray,
    nonzeros: np.ndarray,
    offsets: np.ndarray,
    shape: tuple[int, int],
    dtype: Any,
) -> Parts:
    """Return the factors of several ranks, as views of what `pack` has written.

    Args:
        words: Int64.
        samples: S of each rank, int64.
        nonzeros: The non-zeros of each rank, int64.
        offsets: The word at which each rank begins.
        shape: (K, D).
        dtype: The dtype of u and v.
    """
    itemsize = np.dtype(dtype).itemsize
    u_at = offsets + samples + 1
    columns_at = u_at + _words(samples * shape[0] * itemsize)
    values_at = columns_at + _words(nonzeros * 4)
    each = 8 // itemsize
    table = np.stack([samples, u_at * each, offsets, columns_at * 2, values_at * each], axis=1)
    elements = words.view(dtype)
    return Parts(
        shape,
        np.ascontiguousarray(table, np.int64),
        elements,
        words,
        words.view(np.int32),
        elements,
        int(samples.sum()),
        int(nonzeros.sum()),
    )


def order_bytes(nonzeros: int, itemsize: int) -> int:
    """Return the bytes of memory that `order` needs."""
    return 8 * (nonzeros + 1) + 2 * nonzeros * (itemsize + 8)


def order(parts: Parts, memory: np.ndarray | None = None) -> Product:
    """Return the product of these factors, with the non-zeros ordered by column.

    Args:
        parts: The factors.
        memory: Bytes in which the order is kept, `order_bytes` at least; new ones by default.
    """
    kernels = compiled("_sparse")
    size, dtype = parts.nonzeros, parts.values.dtype
    if memory is None:
        memory = np.empty(order_bytes(size, dtype.itemsize), np.uint8)
    middle, last = 8 * (size + 1), 8 * (size + 1) + 2 * size * dtype.itemsize
    begins = memory[:middle].view(np.int64)
    entries = memory[middle:last].view(dtype).reshape(2, size)
    keys, samples = memory[last : last + 16 * size].view(np.int32).reshape(2, 2, size)
    bits = max(0, parts.shape[1] - 1).bit_length()
    passes = -(-bits // _DIGIT)
    digit = -(-bits // max(1, passes))
    found = kernels.order(
        digit, passes, parts.table, parts.starts, parts.columns, parts.values, keys, samples, entries, begins
    )
    row = passes % 2
    touched = keys[1 - row, :found]
    return Product(
        parts.shape, parts.depth, parts.table, parts.u, touched, begins[: found + 1], samples[row], entries[row]
    )


def reserve(depth: int, dtype: np.dtype[Any]) -> None:
    """Make room for what `update` needs beside its arguments with up to ``depth`` samples, in this thread."""
    scratch(compiled("_sparse").room(depth, dtype.itemsize), dtype)


def rebuild(
    product: Product,
    g: np.ndarray,
    start: int = 0,
    stop: int | None = None,
    first: int = 0,
    *,
    alpha: float = 1.0,
    threads: int = 1,
) -> None:
    """Set rows of g to those of α·uᵀv; 0 where v has no non-zeros.

    Args:
        product: uᵀv.
        g: K×D, C-contiguous and writeable; shares no memory with the factors.
        start: First row.
        stop: End of the rows; all that u has by default.
        first: The row of g that column 0 of u belongs to; negative if g lacks that row and others after it.
        alpha: Factor of the product.
        threads: The most threads that share the rows.

    Raises:
        ValueError: Shapes that do not fit, or rows out of range.
        TypeError: Dtypes, orders or read-only arrays that the kernels do not take.
    """
    _work(compiled("_sparse").SET, _ONE, product, g, (), start, stop, first, alpha, 0.0, threads)


def accumulate(
    product: Product,
    w: np.ndarray,
    start: int = 0,
    stop: int | None = None,
    first: int = 0,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    threads: int = 1,
) -> None:
    """Set rows of w to those of β·w + α·uᵀv; arguments and errors are those of `rebuild`."""
    _work(compiled("_sparse").ADD, _ONE, product, w, (), start, stop, first, alpha, beta, threads)


def update(
    rule: Rule,
    product: Product,
    w: np.ndarray,
    states: Sequence[np.ndarray | None] = (),
    start: int = 0,
    stop: int | None = None,
    first: int = 0,
    *,
    alpha: float = 1.0,
    threads: int = 1,
) -> None:
    """Let a rule take the gradient α·uᵀv in rows of w; arguments and errors are those of `sfb.kernels.update`.

    A rule that leaves elements without a gradient as they are changes the columns of v's non-zeros alone, and touches
    no others if these are few. Any other rule passes over all of w and its states, in the same step, as with dense v.
    """
    kernels, beta = compiled("_sparse"), 0.0
    if rule.kind == ASSIGN:
        mode = kernels.SET
    elif isnan(alpha):  # which shows in every element
        mode = kernels.RULE
    elif rule.kind == SGD:
        mode = kernels.ADD
        scale, beta = rule.linear
        alpha *= scale
    else:
        few = len(product.touched) * _FEW < product.shape[1]
        mode = kernels.TOUCHED if rule.skips_zeros and few else kernels.RULE
    _work(mode, rule, product, w, states, start, stop, first, alpha, beta, threads)


def norm(product: Product) -> float:
    """Return the Frobenius norm of uᵀv, summed in float64; the same on every machine.

    It costs as many multiplications as the product, which is not stored. It is NaN or infinite if a sample with
    non-zeros holds NaN or Inf.
    """
    square = _square(product)
    if _LEAST <= square <= 1 / _LEAST:
        return norm_from(square)
    return _balanced_norm(product)


def scaled(product: Product, exponent: int) -> Product:
    """Return 2ᵉ·uᵀv."""
    return _with_u(product, np.ldexp(_u(product), exponent))


# A rule for sums that no rule takes.
_ONE = sgd(1.0)


def _words(nbytes: Any) -> Any:
    return -(-nbytes // 8)


def _u(product: Product) -> np.ndarray:
    """Return u of all ranks as one matrix, a copy."""
    rows = product.shape[0]
    u = np.empty((product.depth, rows), product.u.dtype)
    at = 0
    for samples, first in product.table[:, :2].tolist():
        u[at : at + samples] = product.u[first : first + samples * rows].reshape(samples, rows)
        at += samples
    return u


def _with_u(product: Product, u: np.ndarray) -> Product:
    """Return the product with another u of all ranks, C-contiguous."""
    return product._replace(u=u.reshape(-1), table=np.array([[len(u), 0, 0, 0, 0]]))


def _square(product: Product) -> float:
    rows = np.empty(product.shape[0])
    compiled("_sparse").squares(
        product.u,
        product.table,
        product.shape[0],
        product.begins,
        product.samples,
        product.values,
        len(product.touched),
        rows,
    )
    return float(np.cumsum(rows)[-1]) if rows.size else 0.0  # one by one; NumPy's sum depends on the processor


@np.errstate(invalid="ignore")
def _balanced_norm(product: Product) -> float:
    """Return the norm after scaling each sample's factors by powers of two."""
    u, values, samples = _u(product), product.values, product.samples
    peaks = np.zeros(product.depth)
    np.maximum.at(peaks, samples, np.abs(values))
    filled = np.zeros(product.depth, bool)
    filled[samples] = True
    tops = np.where(filled, np.abs(u).max(axis=1, initial=0), 0)
    if not (np.isfinite(tops).all() and np.isfinite(peaks).all()):
        return float("nan")
    left, right = np.frexp(tops)[1], np.frexp(peaks)[1]
    counted = (tops > 0) & (peaks > 0)
    if not counted.any():
        return 0.0
    exponents = left + right
    top = int(exponents[counted].max())
    shifts = np.where(counted, exponents - top - left, 0)
    u = np.where(counted[:, None], np.ldexp(u.astype(np.float64), shifts[:, None]), 0)
    even = _with_u(product, u)._replace(values=np.ldexp(values.astype(np.float64), -right[samples]))
    return norm_from(_square(even), top)


def _work(
    mode: int,
    rule: Rule,
    product: Product,
    w: np.ndarray,
    states: Sequence[np.ndarray | None],
    start: int,
    stop: int | None,
    first: int,
    alpha: float,
    beta: float,
    threads: int,
) -> None:
    check_arrays(w)
    if product.u.dtype != w.dtype or product.values.dtype != w.dtype:
        raise TypeError(f"the result must be {product.u.dtype} like the factors, got {w.dtype}")
    if product.shape[1] != w.shape[1]:
        raise ValueError(f"the result must have the {product.shape[1]} columns of v, got {w.shape}")
    rows = product.shape[0]
    if stop is None:
        start = max(start, first, 0)
    stop = check_rows(w, start, stop, first, rows)
    s, t = states_of(rule, w, states)
    kernels = compiled("_sparse")
    size = kernels.room(product.depth, w.itemsize)
    given = product.u, product.table, product.touched, product.begins, product.samples, product.values
    before = mode, rule.kind, rule.numbers(w.dtype), *given, w, s, t, 1 + rule.states, rows, first

    def work(low: int, high: int) -> None:
        kernels.update(*before, low, high, alpha, beta, scratch(size, w.dtype))

    whole = mode in (kernels.SET, kernels.RULE) or beta not in (0, 1)
    share(work, start, stop, len(product.values) + whole * 8 * w.shape[1], threads)
