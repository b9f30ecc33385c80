"""Copies of the state of a run, to which the ranks that are left go back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
from mpi4py import MPI
from mpi4py.util import pkl5

from sfb.optim import Optimizer
from sfb.runtime.windows import find_named

__all__ = ["Keeper"]


class Keeper:
    """A rank's copy of the state of a step.

    Args:
        check: Raises if a rank has died, before a copy takes the place of another; None to keep any.

    Attributes:
        number: The step; -1 without a copy.
        ended: Whether that was the last step.
        copy: The copy, in the form of the state; an optimizer is a dictionary in it.
    """

    def __init__(self, check: Callable[[], None] | None = None) -> None:
        self._check = check or (lambda: None)
        self.number = -1
        self.ended = False
        self.copy: dict[str, Any] = {}

    def keep(self, number: int, state: Mapping[str, Any], *, ended: bool = False) -> None:
        """Copy the state of a step; raise if a rank has died, since the state may be wrong then."""
        self._check()
        self.copy = {name: _copied(value, self.copy.get(name)) for name, value in state.items()}
        self.number, self.ended = number, ended

    def share(self, comm: MPI.Intracomm) -> bool:
        """Give all ranks the copy of the one that has come least far, and return whether there is one; collective.

        Ranks that step together are one copy apart at most.
        """
        numbers = comm.allgather(self.number)
        number = min(numbers)
        if number < 0:
            self._check()
            self.number, self.copy = -1, {}
            return False
        copy, ended = pkl5.Intracomm(comm).bcast((self.copy, self.ended), numbers.index(number))
        self._check()
        self.number, self.copy, self.ended = number, copy, ended
        return True

    def begin(self, comm: MPI.Intracomm, state: Mapping[str, Any]) -> None:
        """Give all ranks a copy of the state of rank 0, as that of step 0; collective."""
        copy = {name: _copied(value, None) for name, value in state.items()} if comm.rank == 0 else {}
        copy = pkl5.Intracomm(comm).bcast(copy)
        self._check()
        self.number, self.copy = 0, copy

    def restore(self, comm: Any, state: Mapping[str, Any]) -> None:
        """Give a state, equal in form to the one that was copied, the values of the copy; collective.

        Args:
            comm: A `sfb.Comm`, for state of optimizers that is yet to be made.
            state: A mutable mapping where values are to be replaced.

        Raises:
            ValueError: The state has another form.
        """
        if {*state} != {*self.copy}:
            raise ValueError(f"the state was {', '.join(self.copy)} before a rank died, and is {', '.join(state)} now")
        for name, value in state.items():
            found = _restored(comm, value, self.copy[name])
            if found is not value:
                state[name] = found  # type: ignore[index]
        comm.Barrier()  # ranks of a node have written to what they share


def _copied(value: Any, old: Any) -> Any:
    """Return a copy of a part of a state; in the memory of an old copy where that fits."""
    if isinstance(value, np.ndarray):
        if isinstance(old, np.ndarray) and (old.shape, old.dtype) == (value.shape, value.dtype) and old.flags.writeable:
            np.copyto(old, value)
            return old
        return np.array(value)
    if isinstance(value, Optimizer):
        parts: dict[str, Any] = {name: getattr(value, name) for name in value.hyperparameters}
        parts |= {"array": value.array} | dict(zip(value.states, value.state, strict=False))
        if "steps" in vars(value):
            parts["steps"] = value.steps
        before = old if isinstance(old, dict) else {}
        return {name: _copied(part, before.get(name)) for name, part in parts.items()}
    if isinstance(value, Mapping):
        before = old if isinstance(old, dict) else {}
        return {name: _copied(part, before.get(name)) for name, part in value.items()}
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return deepcopy(value.state_dict())
    return deepcopy(value)


def _restored(comm: Any, value: Any, copy: Any) -> Any:
    """Return what takes the place of a part of a state: the part itself where its values can be set."""
    if isinstance(value, np.ndarray):
        np.copyto(value, copy)
    elif isinstance(value, Optimizer):
        if any(copy.get(name) is not None for name in value.states):
            value.prepare(np.zeros if find_named(value.array) is None else comm.shared)
        for name, part in copy.items():
            own = getattr(value, name)
            if isinstance(own, np.ndarray):
                np.copyto(own, 0 if part is None else part)
            else:
                setattr(value, name, part)
    elif isinstance(value, dict):
        for name, part in value.items():
            value[name] = _restored(comm, part, copy[name])
    elif hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        value.load_state_dict(deepcopy(copy))
    else:
        return deepcopy(copy)
    return value
