"""Files that a run leaves behind, and JSON that it reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["parse_json", "replacing", "write"]


def parse_json(text: str | bytes) -> Any:
    """Return what JSON holds.

    >>> from sfb.files import parse_json
    >>> parse_json(b'{"a": [1, 2.5]}')
    {'a': [1, 2.5]}

    Raises:
        ValueError: The text is no JSON, or nested more deeply than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write(path: Path, content: str | bytes) -> None:
    """Write a file as a whole: whoever reads it, and whatever happens meanwhile, finds the old content or the new.

    Args:
        path: The file.
        content: Text, which is encoded by UTF-8, or bytes.

    Raises:
        OSError: The file cannot be written; it then holds what it held before.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():  # a device or a pipe
        path.write_bytes(data)
        return
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Return a file to write, which takes the place of ``path`` as a whole at the end of a ``with`` statement.

    Args:
        path: The file to replace, or a link to it.
        durable: Whether the content is on the disk before the file takes its place, so that a machine that loses power
            keeps the old file or the new.

    Raises:
        OSError: The file cannot be written; ``path`` then holds what it held before.
    """
    path = path.resolve()  # a link stays one
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # of a process that was killed, or a link that somebody else has put there
        with temporary.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the file system does that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
