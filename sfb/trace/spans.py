"""Spans of time that the user's program and this library name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from sfb.trace.now import NOW
from sfb.trace.recorder import Recorder

__all__ = ["Span", "each", "record", "span"]

T = TypeVar("T")


class Span:
    """A span of time, the block of a ``with`` statement; without a trace it does nothing.

    >>> import sfb
    >>> with sfb.trace.span("forward"):
    ...     total = sum(range(1000))
    """

    __slots__ = ()

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def waits_for(self, missing: Callable[[], list[int]]) -> None:
        """Note which ranks the span waits for."""


class _Recorded(Span):
    """A span that is recorded."""

    __slots__ = ("_facts", "_kind", "_name", "_recorder", "_start")

    def __init__(self, recorder: Recorder, name: str, kind: str, facts: dict[str, Any]) -> None:
        self._recorder = recorder
        self._name = name
        self._kind = kind
        self._facts = facts

    def __enter__(self) -> Span:
        self._start = self._recorder.clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recorder.add(self._kind, self._name, self._start, self._recorder.clock(), **self._facts)

    def waits_for(self, missing: Callable[[], list[int]]) -> None:
        ranks = missing()
        if ranks:
            self._facts["peer"] = ranks[-1]


_OFF = Span()


def span(name: str, kind: str = "span", **facts: Any) -> Span:
    """Return a context manager that records the time of its block in the trace of this rank.

    Without a trace (`SFB_TRACE`, ``Comm(trace=)``) it does nothing. Blocks may be nested.

    Args:
        name: What the block does; few different names, as "forward".
        kind: What sort of work it is. This library uses others than the default.
        facts: What else is known of it, as `sfb.trace.recorder.Recorder.add` takes it.

    >>> import sfb
    >>> with sfb.trace.span("load a batch"):
    ...     batch = list(range(64))
    """
    recorder = NOW.recorder
    if recorder is None:
        return _OFF
    return _Recorded(recorder, name, kind, facts)


def each(name: str, items: Iterable[T], kind: str = "phase") -> Iterable[T]:
    """Return what ``items`` yields, and record as spans the time that it takes to yield it."""
    return items if NOW.recorder is None else _timed(name, iter(items), kind)


def _timed(name: str, items: Iterator[T], kind: str) -> Iterator[T]:
    end = object()
    while True:
        with span(name, kind):
            item: Any = next(items, end)
        if item is end:
            return
        yield item


def record(name: str, kind: str, began: float, ended: float, **facts: Any) -> None:
    """Record a span between two readings of `time.perf_counter`, if there is a trace."""
    recorder = NOW.recorder
    if recorder is not None:
        end = recorder.at(ended)
        recorder.add(kind, name, end - round((ended - began) * 1e9), end, **facts)
