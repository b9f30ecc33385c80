"""Work that goes on when a rank dies, with the ranks that are left (ULFM, `mpirun --with-ft ulfm` of Open MPI)."""

from sfb.elastic.loop import Outcome, run
from sfb.elastic.membership import Loss

__all__ = ["Loss", "Outcome", "run"]
