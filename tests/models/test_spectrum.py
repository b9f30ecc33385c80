"""Principal directions of shards, against the singular value decomposition of all samples."""

import numpy as np
import pytest
from oracle import assert_same_bits
from scipy import sparse
from shards import shard

pytest.importorskip("sklearn")

from sfb.models.ranks import Ranks
from sfb.models.spectrum import principal

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", [(60, 25), (60, 8), (7, 25)], ids=str)
def test_directions_are_those_of_all_samples(world, rng, form, centred, shape):
    x = rng.standard_normal(shape) * 0.6 ** np.arange(shape[1]) + 0.3
    (mine,) = shard(world, x)
    with Ranks(world) as ranks:
        found, spread = principal(ranks, form(mine), 5, 3, centred=centred)
    _, expected, directions = np.linalg.svd(x - x.mean(axis=0) * centred, full_matrices=False)
    np.testing.assert_allclose(spread, expected[:5], rtol=1e-5)
    np.testing.assert_allclose(abs(np.sum(found * directions[:5], axis=1)), 1, rtol=1e-4)
    assert_same_bits(world, found)
