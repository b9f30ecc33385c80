"""Checkpoints: files that hold all that a training run needs to go on, and the folder that holds the last of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sfb import __version__
from sfb.files import parse_json, replacing

__all__ = ["FORMAT", "Checkpoint", "CheckpointError", "DamagedError", "Folder", "read", "write"]

FORMAT = 1
# The first line of a checkpoint, its format aside.
_MAGIC = b"sfb checkpoint "
_DIGEST = 32  # bytes of the checksum
_BLOCK = 1 << 24  # bytes that are read or written at a time
_LONGEST_LINE = 1 << 24
_PREFIX, _SUFFIX = "checkpoint-", ".sfb"
_TYPES = ("<f4", "<f8")
_MOST_DIMENSIONS, _MOST_ELEMENTS = 32, 1 << 59

# The header, and the arrays by name.
Checkpoint = tuple[dict[str, Any], dict[str, np.ndarray]]


class CheckpointError(Exception):
    """A checkpoint cannot be written, or cannot be read."""


class DamagedError(CheckpointError):
    """A file is no checkpoint, or has been cut short or changed."""


class _Hashed:
    """A file of which all that passes is hashed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = blake2b(digest_size=_DIGEST)

    def write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)

    def read_into(self, view: memoryview) -> None:
        if self._file.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise DamagedError("has been cut short")
        self._hash.update(view)

    def line(self) -> bytes:
        line = self._file.readline(_LONGEST_LINE)
        self._hash.update(line)
        return line

    def digest(self) -> bytes:
        return self._hash.digest()


def write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a checkpoint, whole and durable: whatever happens, ``path`` holds what it held before, or all of it.

    A line with "sfb checkpoint" and the format; a line of JSON: the header, the version of sfb, and name, type and
    shape of each array; the elements of the arrays, one after the other, in the order of C, little-endian; BLAKE2b of
    all that, 32 bytes.

    Args:
        path: The file.
        header: What JSON can hold.
        arrays: float32 or float64, C-contiguous.

    Raises:
        CheckpointError: The file cannot be written; it then holds what it held before.
    """
    listed = [[name, array.dtype.newbyteorder("<").str, list(array.shape)] for name, array in arrays.items()]
    text = json.dumps({"sfb": __version__, "header": dict(header), "arrays": listed}, allow_nan=False)
    try:
        with replacing(path, durable=True) as file:
            hashed = _Hashed(file)
            hashed.write(_MAGIC + b"%d\n" % FORMAT)
            hashed.write(text.encode() + b"\n")
            for name, array in arrays.items():
                if not array.flags.c_contiguous:
                    raise ValueError(f"{name} is not C-contiguous")
                view = _bytes(np.asarray(array, array.dtype.newbyteorder("<")))
                for start in range(0, len(view), _BLOCK):
                    hashed.write(view[start : start + _BLOCK])
            file.write(hashed.digest())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write the checkpoint: {error.strerror or error}") from error


def read(path: Path) -> Checkpoint:
    """Return the header and the arrays of a checkpoint.

    Raises:
        DamagedError: The file is no checkpoint, or has been cut short or changed.
        CheckpointError: The file cannot be read, or is of another format.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint: {error.strerror or error}") from error
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error


def _read(file: BinaryIO) -> Checkpoint:
    hashed = _Hashed(file)
    first = hashed.line()
    if not first.startswith(_MAGIC):
        raise DamagedError("is no checkpoint of sfb train")
    line = hashed.line()
    if first != _MAGIC + b"%d\n" % FORMAT:
        raise CheckpointError(
            f"is of format {first[len(_MAGIC) :].strip().decode('ascii', 'replace')}; this sfb {__version__} reads "
            f"format {FORMAT}: go on with the version that wrote it"
        )
    try:
        described = parse_json(line)
        kinds = [_form(*each) for each in described["arrays"]]
        header = dict(described["header"])
        nbytes = sum(kind.itemsize * math.prod(shape) for _, kind, shape in kinds)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedError("is damaged: its second line does not describe it") from error
    # Before anything is allocated: a damaged size may be huge.
    if os.fstat(file.fileno()).st_size != len(first) + len(line) + nbytes + _DIGEST:
        raise DamagedError("has been cut short, or is damaged: its size is not what it says")
    arrays = {}
    for name, kind, shape in kinds:
        array = np.empty(shape, kind)
        view = _bytes(array)
        for start in range(0, len(view), _BLOCK):
            hashed.read_into(view[start : start + _BLOCK])
        arrays[name] = array.astype(kind.newbyteorder("="), copy=False)
    if file.read() != hashed.digest():
        raise DamagedError("is damaged: its checksum is not that of its content")
    return header, arrays


def _form(name: Any, kind: Any, shape: Any) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """Return name, type and shape of an array; raise ValueError unless NumPy can make it."""
    sizes = tuple(shape)
    if not isinstance(name, str) or kind not in _TYPES or len(sizes) > _MOST_DIMENSIONS:
        raise ValueError(name)
    if not all(type(n) is int and n >= 0 for n in sizes) or math.prod(max(n, 1) for n in sizes) > _MOST_ELEMENTS:
        raise ValueError(sizes)
    return name, np.dtype(kind), sizes


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # a memoryview itself does not cast what is empty


class Folder:
    """The folder of a run's checkpoints, of which the last few are kept; used on one rank.

    Args:
        path: The folder; it is made if it does not exist.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self._keep = keep

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are there, in ascending order."""
        found = []
        for path in self.path.glob(f"{_PREFIX}*{_SUFFIX}"):
            name = path.name[len(_PREFIX) : -len(_SUFFIX)]
            if name.isdecimal() and self.file(int(name)) == path and path.is_file():
                found.append(int(name))
        return sorted(found)

    def file(self, step: int) -> Path:
        """Return the file of the checkpoint of a step."""
        return self.path / f"{_PREFIX}{step:010d}{_SUFFIX}"

    def prepare(self, *, resume: bool | None) -> None:
        """Make the folder, see that it can be written to, and remove what runs that were killed have left unfinished.

        Args:
            resume: Whether the run is to go on from a checkpoint, rather than to begin; None for either.

        Raises:
            CheckpointError: The folder cannot be written to; a run that goes on finds no checkpoint, or one that begins
                finds some.
        """
        try:
            if resume and not self.steps():
                raise CheckpointError(
                    f"--resume: there is no checkpoint in {self.path}; begin without --resume, or give the folder of "
                    "the run to go on with"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            if self.steps() and resume is False:
                raise CheckpointError(
                    f"{self.path} holds checkpoints up to step {self.steps()[-1]} of another run; go on with it by "
                    "--resume, or give another folder"
                )
            for left in self.path.glob(f".{_PREFIX}*"):
                left.unlink()
            probe = self.path / f".{_PREFIX}probe"
            with probe.open("xb") as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
            probe.unlink()
        except OSError as error:
            raise CheckpointError(f"cannot write checkpoints to {self.path}: {error.strerror or error}") from error

    def save(self, step: int, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write the checkpoint of a step, then remove those that are not to be kept.

        Raises:
            CheckpointError: It cannot be written; all others are still there.
        """
        file = self.file(step)
        if file.is_symlink():  # the checkpoint takes its place, not that of what it names
            with suppress(OSError):
                file.unlink()
        write(file, header, arrays)
        for old in self.steps()[: -self._keep]:
            with suppress(OSError):
                self.file(old).unlink()

    def newest(self) -> tuple[Checkpoint, list[str]]:
        """Return the newest checkpoint that is whole, and what is wrong with newer ones.

        Raises:
            CheckpointError: There is none, or the newest that is whole is of another format.
        """
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                return read(self.file(step)), damaged
            except DamagedError as error:
                damaged.append(str(error))
        raise CheckpointError("; ".join([*damaged, "no checkpoint is left to go on from"]))
