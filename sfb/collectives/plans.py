"""The plans that a communicator keeps."""

from __future__ import annotations

from collections import deque

from sfb.collectives.cache import MOST, Signature
from sfb.collectives.persistent import Prepared

__all__ = ["Plans", "PlansOfKey"]


class PlansOfKey(dict[object, Prepared]):
    """The plans for the key of a signature.

    Attributes:
        unlike: The plan of the last call, if ranks with unlike S try it first: its exchange is eager.
        gone: Whether the last has been dropped, on all ranks; a signature then looks for the key again.
    """

    __slots__ = ("gone", "key", "unlike")

    def __init__(self, key: tuple[object, ...]) -> None:
        super().__init__()
        self.key, self.gone = key, False
        self.unlike: Prepared | None = None


class Plans:
    """The plans that are kept, the same on all ranks.

    Plans of one key lie in one dictionary, by S if it is the same on all ranks, else by their
    `sfb.collectives.problem.Spread`.
    """

    def __init__(self) -> None:
        self._by_key: dict[tuple[object, ...], PlansOfKey] = {}
        self._kept: deque[tuple[PlansOfKey, object]] = deque()

    def of(self, signature: Signature) -> PlansOfKey:
        """Return the plans for the key of a signature."""
        plans: PlansOfKey | None = signature.plans
        if plans is None or plans.gone:
            plans = self._by_key.get(signature.key)
            if plans is None:
                plans = self._by_key[signature.key] = PlansOfKey(signature.key)
            signature.plans = plans
        return plans

    def unbind(self) -> None:
        """Let all plans drop what refers to the node's staging memory."""
        for plans, samples in self._kept:
            plans[samples].unbind()

    def add(self, plans: PlansOfKey, samples: object, prepared: Prepared) -> None:
        """Keep a plan among ``plans``, in place of the oldest of all if there are too many."""
        if len(self._kept) >= MOST:
            oldest, key = self._kept.popleft()
            if oldest.pop(key) is oldest.unlike:
                oldest.unlike = None
            if not oldest and oldest is not plans:
                oldest.gone = True
                del self._by_key[oldest.key]
        plans[samples] = prepared
        self._kept.append((plans, samples))
