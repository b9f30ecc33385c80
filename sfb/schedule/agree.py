"""Errors that all ranks raise, for ranks that may be alone and without MPI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["agree", "caught", "is_alone"]


def is_alone(comm: Any) -> bool:
    """Return whether ``comm`` stands for one process."""
    return comm is None or comm.size == 1


def agree(comm: Any, call: str, text: str = "", error: Exception | None = None) -> None:
    """Raise on every rank if one has an error, or if their texts differ; collective.

    Args:
        comm: The ranks; None for this process alone.
        call: The user's call, for messages.
        text: What has to be equal on all ranks.
        error: This rank's error.

    Raises:
        MismatchError: The texts differ.
        Exception: A rank passed an ``error``; every rank raises one of its type, naming the rank.
    """
    if is_alone(comm):
        if error is not None:
            raise error
        return
    from sfb.runtime.agreement import compare

    compare(comm, call, text, error)


def caught(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    """Return the result of a call and None, or None and what it raised."""
    try:
        return function(*arguments), None
    except Exception as error:  # the other ranks wait to hear of it
        return None, error
