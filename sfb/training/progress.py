"""The progress of a training run, on rank 0."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from time import perf_counter
from types import TracebackType
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from sfb.environment import header
from sfb.training.config import Config
from sfb.training.live import Live
from sfb.training.status import console, line, table
from sfb.training.sync import Tick
from sfb.training.trainer import Epoch, Trainer
from sfb.units import format_bytes, format_duration, format_rate

__all__ = ["Progress", "show_measure"]

# Seconds over which rates are averaged.
_WINDOW = 5.0
# Seconds between two lines where there is no terminal.
_LINE = 60.0


class Progress(AbstractContextManager["Progress"]):
    """Reports a run on rank 0: on a terminal a bar and the ranks, elsewhere a line for each epoch and each minute.

    Args:
        config: What the run trains, and how.
        live: What the ranks tell of themselves; None to show nothing of it.

    Attributes:
        active: Whether this rank reports.
    """

    def __init__(self, config: Config, live: Live | None = None) -> None:
        self._live = live
        self._spoken = perf_counter()
        self._config = config
        self.active = False
        self._bar: _Bar | None = None
        self._task: TaskID | None = None
        self._measure = ""
        self._trainer: Trainer | None = None
        self._began = self._ended = perf_counter()
        self._first = 0
        self._rate = _Rate()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, trainer: Trainer) -> Tick:
        """Say what the run trains, and return the function to call after every step."""
        anew = self._trainer is not None  # ranks have died
        self._trainer, self._measure = trainer, trainer.model.measure
        self.active = trainer.rank == 0
        self._first = trainer.position.taken
        self._began = self._ended = perf_counter()
        if self._live is not None:
            self._live.begin()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._first)
        elif self.active:
            self._show(trainer, anew)
        return self._tick

    def _show(self, trainer: Trainer, anew: bool) -> None:
        """Say what the run trains, unless another rank has said so, and show a bar on a terminal."""
        if not anew:
            print(self._config.title, flush=True)
            if self._first:
                print(
                    f"going on from the checkpoint of step {self._first}, in epoch {trainer.position.epoch}", flush=True
                )
        # Open MPI gives a rank a terminal as output even when that goes to a file; as input it gives none.
        screen = console()
        if sys.stdout.isatty() and sys.stdin.isatty() and screen.is_interactive:
            self._bar = _Bar(
                TextColumn("step"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=screen,
            )
            self._task = self._bar.add_task("step", total=trainer.total, completed=self._first, text="")
            self._bar.start()

    def _tick(self, loss: float, examples: int, wire_bytes: int) -> None:
        trainer, live = self._trainer, self._live
        if trainer is None:
            return
        if live is not None:
            sync = trainer.sync
            if live.tick(self._first, trainer.total, loss, wire_bytes, sync.totals, sync.staleness):
                self._show_ranks(live)
        if self._bar is None or self._task is None:
            return
        self._rate.add(examples, wire_bytes)
        samples, nbytes = self._rate.per_second()
        # Steps within a stretch are known to the bar alone.
        self._bar.advance(self._task)
        left = trainer.total - self._bar.tasks[self._task].completed
        steps = max(1.0, self._bar.tasks[self._task].completed - self._first)
        remaining = left * (perf_counter() - self._began) / steps
        self._bar.update(
            self._task,
            text=f"loss {loss:.4f}  {samples:.0f} samples/s  {format_rate(nbytes)}  {format_duration(remaining)} left",
        )

    def _show_ranks(self, live: Live) -> None:
        """Show what the ranks tell of themselves: on a terminal at once, elsewhere a minute after the last line."""
        if self._bar is not None:
            self._bar.ranks = table(live.status, max(4, self._bar.console.height - 4))
        elif perf_counter() - self._spoken >= _LINE:
            self._spoken = perf_counter()
            print(line(live.status), flush=True)

    def report(self, epoch: Epoch) -> None:
        """Print one epoch."""
        if not self.active or self._trainer is None:
            return
        now = self._spoken = perf_counter()
        done = epoch.epoch * self._trainer.steps
        elapsed, steps = now - self._began, done - self._first
        left = (self._trainer.total - done) * elapsed / max(1, steps)
        overlap = f", overlap {epoch.overlap:.0%}" if self._config.overlap else ""
        seconds = max(epoch.seconds, 1e-9)
        line = (
            f"epoch {epoch.epoch}/{self._config.epochs}  loss {epoch.loss:.4f}  "
            f"test {self._measure} {show_measure(self._measure, epoch.score)}  "
            f"{epoch.seconds:.2f} s (exchange {epoch.exchange_seconds:.2f} s, {format_bytes(epoch.wire_bytes)}"
            f"{overlap})  {epoch.examples / seconds:.0f} samples/s  {format_rate(epoch.wire_bytes / seconds)}"
            + (f"  {format_duration(left)} left" if left > 0 else "")
        )
        if self._bar is not None:
            self._bar.console.print(line, soft_wrap=True)
        else:
            print(line, flush=True)

    def finish(self, result: dict[str, Any]) -> None:
        """Print the layers and the environment of the run."""
        if self._bar is not None:
            self._bar.ranks = None  # they told this up to a second before the end
            self._bar.stop()
        for layer in result["layers"]:
            print(
                f"{layer['name']}  {layer['K']}×{layer['D']}  {layer['algorithm']}  "
                f"{format_bytes(layer['wire_bytes_per_step'])} per step"
            )
        print(f"replicas identical: {'yes' if result['replicas_identical'] else 'NO'}")
        if result["stopped"]:
            print(f"ended by {result['stopped']}" + ("; --resume goes on from here" if result["resumable"] else ""))
        for text in header(result["environment"]):
            print(f"# {text}")


class _Bar(Bar):
    """A bar, and a table of the ranks below it.

    Attributes:
        ranks: The table; None for none.
    """

    ranks: Table | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield what is shown."""
        yield from super().get_renderables()
        if self.ranks is not None:
            yield self.ranks


class _Rate:
    """Examples and bytes per second, over the last seconds."""

    def __init__(self) -> None:
        self._points: list[tuple[float, int, int]] = [(perf_counter(), 0, 0)]

    def add(self, examples: int, wire_bytes: int) -> None:
        """Note a step: its examples, and all bytes so far."""
        now = perf_counter()
        self._points.append((now, self._points[-1][1] + examples, wire_bytes))
        while len(self._points) > 2 and self._points[1][0] < now - _WINDOW:
            self._points.pop(0)

    def per_second(self) -> tuple[float, float]:
        """Return examples and bytes per second."""
        (began, *first), (ended, *last) = self._points[0], self._points[-1]
        seconds = max(ended - began, 1e-9)
        return (last[0] - first[0]) / seconds, (last[1] - first[1]) / seconds


def show_measure(measure: str, value: float) -> str:
    """Return the text of a measure: an accuracy as a percentage.

    >>> from sfb.training.progress import show_measure
    >>> show_measure("1-NN accuracy", 0.5), show_measure("mean squared error", 0.25)
    ('50.00%', '0.25')
    """
    return f"{value:.2%}" if "accuracy" in measure else f"{value:.4g}"
