"""The return codes of all kernels.

Codes are at most 0. The docstring of a kernel that returns numbers above 0 says what they are: missing elements of
scratch, or an error code of MPI.
"""

__all__ = ["AGREED", "APART", "DAMAGED", "DIFFERENT", "DONE", "MIXED", "PENDING", "UNEVEN", "UNFIT"]

# The work is done.
DONE = 0
# Other ranks, or messages, are missing: call again to go on.
PENDING = -1
# The arguments do not fit; the kernel has done nothing.
UNFIT = -2
# Verdicts on the headers of all ranks: digests and sizes are equal; digests are equal, sizes are not; digests differ;
# digests differ, and all stand for plain arrays.
AGREED, UNEVEN, DIFFERENT, MIXED = -3, -4, -5, -6
# The headers of all ranks have been exchanged, and they or their payloads differ: no sum has been formed.
APART = -7
# A message has arrived damaged, here or on another node: no sum has been formed.
DAMAGED = -8
