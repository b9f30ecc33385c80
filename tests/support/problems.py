"""Problems that tests of algorithms and plans share."""

import numpy as np

from sfb.collectives import Problem, fill_nodes


def even(shape, samples, ranks, nodes=1, shared=False, sharing=1.0, **options):
    """Return the problem of ``samples`` samples of float32 on each of ``ranks`` ranks."""
    return Problem(
        shape=shape,
        dtype=np.dtype("f4"),
        counts=np.full(ranks, samples, np.int64),
        node_of=fill_nodes(ranks, nodes),
        passes=1,
        shared=shared,
        sharing=sharing,
        **options,
    )
