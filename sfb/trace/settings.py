"""What the environment and the user ask for: traces and logs, on or off."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from contextlib import suppress
from math import inf
from pathlib import Path
from time import perf_counter
from typing import TextIO

from sfb.trace.files import save
from sfb.trace.now import NOW
from sfb.trace.recorder import Recorder
from sfb.units import parse_duration

__all__ = ["PATIENCE", "from_environment", "patience", "start_trace", "warn_once", "write_trace"]

_log = logging.getLogger("sfb")

# Seconds after which the watchdog speaks.
PATIENCE = 300.0
_OFF = ("", "0", "off", "no", "false")
_ON = ("1", "on", "yes", "true", "stderr")

_warned: set[str] = set()


def from_environment() -> None:
    """Begin the trace and the log that SFB_TRACE and SFB_DEBUG ask for."""
    folder = os.environ.get("SFB_TRACE", "")
    if folder:
        start_trace(folder)
    debug = os.environ.get("SFB_DEBUG", "")
    if debug.lower() not in _OFF:
        NOW.log = _Log("" if debug.lower() in _ON else debug)
        NOW.switch()


def patience() -> float:
    """Return the seconds of SFB_WATCHDOG, after which the watchdog speaks; infinity for never."""
    text = os.environ.get("SFB_WATCHDOG", "")
    if not text:
        return PATIENCE
    if text.lower() in _OFF:
        return inf
    try:
        return parse_duration(text)
    except ValueError as error:
        warn_once(f"SFB_WATCHDOG: {error}; the watchdog speaks after {PATIENCE:g} s")
        return PATIENCE


def start_trace(folder: str | os.PathLike[str]) -> None:
    """Record events from now on, and write them into a folder at the end.

    A folder that cannot be used is a `Now.problem`: the program goes on without a trace.

    Args:
        folder: The folder, made if it does not exist.
    """
    path = Path(os.path.abspath(os.fspath(folder)))
    recorder = NOW.recorder
    if recorder is not None:
        if recorder.folder != path:
            NOW.problem = f"the trace goes to {recorder.folder} already, not to {path}"
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        NOW.problem = f"there is no trace: {path}: {error.strerror or error}"
        return
    NOW.recorder = Recorder(path)
    NOW.switch()
    atexit.register(write_trace, "exit")


def write_trace(why: str) -> Path | None:
    """Write what has been recorded so far, and return the file; None if there is nothing to write.

    A disk that is full is a warning, once.

    Args:
        why: What makes the rank write.
    """
    recorder = NOW.recorder
    if recorder is None or NOW.rank < 0 or not recorder.own or not recorder.news:  # a child process is no rank
        return None
    try:
        return save(recorder, NOW.rank, NOW.size, NOW.host, why)
    except OSError as error:
        warn_once(f"the trace of rank {NOW.rank} is not written: {recorder.folder}: {error.strerror or error}")
        return None


def warn_once(text: str) -> None:
    """Warn by the logger "sfb", of the same thing once."""
    if text not in _warned:
        _warned.add(text)
        _log.warning("%s", text)


class _Log:
    """Writes lines of SFB_DEBUG, with the rank and the seconds since the beginning.

    Args:
        path: A file, in whose name %r stands for the rank; "" for the error output.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._began = perf_counter()

    def __call__(self, text: str) -> None:
        line = f"sfb [{max(NOW.rank, 0)}/{NOW.size} {perf_counter() - self._began:.6f}] {text}\n"
        if self._file is None:
            self._file = self._open()
        with suppress(OSError, ValueError):
            self._file.write(line)
            self._file.flush()

    def _open(self) -> TextIO:
        if not self._path:
            return sys.stderr
        path = self._path.replace("%r", str(max(NOW.rank, 0)))
        try:
            return open(path, "a", encoding="utf-8")  # closed by the end of the process
        except OSError as error:
            warn_once(f"SFB_DEBUG: {path}: {error.strerror or error}; the log goes to the error output")
            return sys.stderr
