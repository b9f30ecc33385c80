"""The replica of a rank: its tables, the updates that have arrived, and the order in which it applies them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import prod

import numpy as np

import sfb.kernels as kernels
from sfb.kernels import sparse
from sfb.optim import SGD, Optimizer
from sfb.store.entry import CLOCK, DENSE, END, Entry, csr_samples

__all__ = ["Replica", "Table"]

_FOREVER = 2**62  # the clocks that a rank has ended when it has closed the store


class Table:
    """A parameter, and the matrix that the kernels work on.

    Args:
        name: The user's name for it.
        initial: Its value, of any shape, float32 or float64; copied.
        rule: The update rule, without a parameter.

    Attributes:
        array: The value, in the user's shape.
        matrix: The same memory as a matrix: a row for each index of the first dimension, or a single row.
        optimizer: The rule, bound to the matrix.
        taken: The number of steps of the rule.
    """

    def __init__(self, name: str, initial: np.ndarray, rule: Optimizer) -> None:
        self.name = name
        self.array = np.array(initial, order="C")
        shape = self.array.shape
        self.matrix = self.array.reshape(shape[0], prod(shape[1:])) if len(shape) > 1 else self.array.reshape(1, -1)
        self.optimizer = rule.bind(self.matrix)
        self.optimizer.prepare(np.zeros)
        self.taken = 0

    @property
    def additive(self) -> bool:
        """Whether the rule is plain SGD, so that one step for a sum of updates equals a step for each."""
        rule = self.optimizer
        return isinstance(rule, SGD) and not rule.momentum and not rule.weight_decay and rule.plain

    @property
    def steps_ahead(self) -> int:
        """The steps that the rule counts beside those of the store, 0 unless the user has set them."""
        return self.optimizer.steps - self.taken if "steps" in vars(self.optimizer) else 0

    def take(self, entries: Sequence[Entry], threads: int) -> None:
        """Apply the sum of the updates, added in their order, as one step of the rule."""
        rows, columns = self.matrix.shape
        self.taken += 1
        factors, filled = [], []
        dense: np.ndarray | None = None
        for entry in entries:
            values = entry.payload.view(self.matrix.dtype)
            if entry.size < DENSE:
                filled.append(entry)
            elif entry.size == DENSE:
                gradient = values.reshape(rows, columns)
                dense = gradient if dense is None else dense + gradient
            else:
                middle = entry.size * rows
                factors.append((values[:middle].reshape(-1, rows), values[middle:].reshape(-1, columns)))
        if len(factors) == 1:
            u, v = factors[0]
        elif factors:
            u, v = (np.concatenate(parts) for parts in zip(*factors, strict=True))
        if dense is None and not (factors and filled):
            if filled:
                self.optimizer.update_sparse(self._product(filled), 0, rows, threads=threads)
            else:
                self.optimizer.update(u, v, 0, rows, threads=threads)
            self.optimizer.end()
            return
        dense = np.zeros_like(self.matrix) if dense is None else dense.copy()
        if factors:
            kernels.accumulate(u, v, dense, threads=threads)
        if filled:
            sparse.accumulate(self._product(filled), dense, threads=threads)
        self.optimizer.step(dense)

    def _product(self, entries: Sequence[Entry]) -> sparse.Product:
        """Return the sum of updates by factors with CSR v."""
        messages = [entry.payload.view(np.int64) for entry in entries]
        words = messages[0] if len(messages) == 1 else np.concatenate(messages)
        samples = np.array([csr_samples(entry.size) for entry in entries])
        nonzeros = np.array([message[count] for message, count in zip(messages, samples, strict=True)])
        offsets = np.cumsum([0, *(len(message) for message in messages[:-1])])
        shape = self.matrix.shape
        return sparse.order(sparse.unpack(words, samples, nonzeros, offsets, (shape[0], shape[1]), self.matrix.dtype))


class Replica:
    """The tables of one rank, the updates that it has yet to apply, and the clocks of all ranks.

    Under `BSP` the replica keeps the updates of a clock until it has those of all ranks, sums them in the order of
    ranks, and applies the sum as one step of the rule, so that every rank holds the same bits. Otherwise it applies
    each update as a step of its own, in the order of arrival.

    Args:
        tables: The parameters.
        size: Number of ranks.
        ordered: Whether to sum updates clock by clock, as `BSP` does.
        threads: Number of threads of the kernels.

    Attributes:
        ended: For each rank the number of clocks that it has ended and of which all updates have arrived.
        waiting_bytes: Bytes of updates that have arrived and are not yet applied.
        applied: The number of updates applied so far.
        fastest: The largest clock that a rank is known to have reached.
    """

    def __init__(self, tables: Sequence[Table], size: int, *, ordered: bool, threads: int) -> None:
        self.tables = tables
        self.ended = [0] * size
        self.waiting_bytes = 0
        self.applied = 0
        self.fastest = 0
        self._ordered = ordered
        self._threads = threads
        self._waiting: dict[int, list[Entry]] = defaultdict(list)
        self._numbers: dict[tuple[int, int], set[int]] = defaultdict(set)
        self._expected: dict[tuple[int, int], int] = {}
        self._closed: dict[int, int] = {}

    @property
    def arrived(self) -> int:
        """The last clock of which every update of every rank has arrived; −1 for none."""
        return min(self.ended) - 1

    @property
    def complete(self) -> bool:
        """Whether every rank has closed the store, and every update has arrived."""
        return self.arrived >= _FOREVER - 1

    def behind(self, clock: int) -> list[int]:
        """Return the ranks of which an update of ``clock`` or before, or the end of that clock, has yet to arrive."""
        return [rank for rank, ended in enumerate(self.ended) if ended <= clock]

    def fault(self, entry: Entry) -> str:
        """Return what is wrong with an entry of another rank, in words that follow its message; "" if nothing is."""
        origin, clock = key = entry.origin, entry.clock
        arrived, expected = self._numbers.get(key, ()), self._expected.get(key)
        if clock < self.ended[origin]:
            return f"holds an entry of clock {clock} of rank {origin}, which has ended that clock"
        if entry.kind == END:
            return f"says once more that rank {origin} has closed the store" if origin in self._closed else ""
        if entry.kind == CLOCK:
            if expected is not None or entry.size < len(arrived):
                return (
                    f"ends clock {clock} of rank {origin} after {entry.size} updates, another end or more updates came"
                )
            return ""
        if entry.number in arrived or (expected is not None and len(arrived) >= expected):
            return f"holds update {entry.number} of rank {origin} in clock {clock} once more, or one too many"
        return "" if self._fits(entry) else "holds an update that fits no table"

    def _fits(self, entry: Entry) -> bool:
        """Return whether an update has the size of one of a table, and with CSR v its form."""
        if not 0 <= entry.table < len(self.tables):
            return False
        (rows, columns), itemsize = self.tables[entry.table].matrix.shape, self.tables[entry.table].matrix.itemsize
        if entry.size >= DENSE:
            elements = rows * columns if entry.size == DENSE else entry.size * (rows + columns)
            return entry.payload.nbytes == elements * itemsize
        samples, nbytes = csr_samples(entry.size), entry.payload.nbytes
        if nbytes % 8 or samples >= nbytes // 8:
            return False
        words = entry.payload.view(np.int64)
        starts, nonzeros = words[: samples + 1], int(words[samples])
        if not 0 <= nonzeros <= nbytes or nbytes != 8 * sparse.message_words(samples, nonzeros, rows, itemsize):
            return False
        at = 2 * sparse.message_words(samples, 0, rows, itemsize)
        numbers = words.view(np.uint32)[at : at + nonzeros]  # of columns; a negative one is too large here
        return starts[0] == 0 and bool((starts[1:] >= starts[:-1]).all()) and numbers.max(initial=0) < max(1, columns)

    def deliver(self, entry: Entry) -> None:
        """Keep an update to apply later, or note that a rank has ended a clock or closed the store."""
        key = entry.origin, entry.clock
        if entry.kind == CLOCK:
            self._expected[key] = entry.size
        elif entry.kind == END:
            self._closed[entry.origin] = entry.clock
        else:
            self._numbers[key].add(entry.number)
            self._waiting[entry.clock if self._ordered else 0].append(entry)
            self.waiting_bytes += entry.nbytes
        self._advance(entry.origin)

    def _advance(self, origin: int) -> None:
        """Count the clocks that a rank has ended and of which all updates have arrived."""
        clock = self.ended[origin]
        while (expected := self._expected.get((origin, clock))) is not None:
            if len(self._numbers.get((origin, clock), ())) < expected:
                break
            del self._expected[origin, clock]
            self._numbers.pop((origin, clock), None)
            clock += 1
        if clock < _FOREVER:
            self.fastest = max(self.fastest, clock)
        if self._closed.get(origin) == clock:
            clock = _FOREVER
        self.ended[origin] = clock

    def apply(self) -> None:
        """Apply all updates that have arrived; under `BSP` only those of clocks that have arrived whole."""
        for clock in sorted(self._waiting):
            if self._ordered and clock > self.arrived:
                break
            entries = self._waiting.pop(clock)
            if self._ordered:
                entries.sort(key=lambda entry: (entry.origin, entry.number))
            by_table: dict[int, list[Entry]] = defaultdict(list)
            for entry in entries:
                by_table[entry.table].append(entry)
            for number, updates in sorted(by_table.items()):
                table = self.tables[number]
                if self._ordered or table.additive:
                    table.take(updates, self._threads)
                else:
                    for update in updates:
                        table.take([update], self._threads)
            self.applied += len(entries)
            self.waiting_bytes -= sum(entry.nbytes for entry in entries)
