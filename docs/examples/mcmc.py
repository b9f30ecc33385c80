"""Bayesian logistic regression
============================

Chains of HMC, spread over the ranks, with diagnostics by ArviZ::

    mpirun -n 2 python -m mpi4py mcmc.py

`--plot FILE` draws the chains.
"""

import argparse

import numpy as np
from mpi4py import MPI
from scipy.special import expit, log_expit

from sfb.mcmc import diagnostics, run_chains

rng = np.random.default_rng(0)
X = np.column_stack([np.ones(300), rng.normal(size=(300, 3))])
y = rng.random(300) < expit(X @ [-0.5, 1.0, -2.0, 0.0])


def logp(beta):
    """Return the log-density of the coefficients, with a prior of standard deviation 3."""
    scores = X @ beta
    return log_expit(np.where(y, scores, -scores)).sum() - beta @ beta / 18


def gradient(beta):
    """Return its gradient."""
    return X.T @ (y - expit(X @ beta)) - beta / 9


result = run_chains(
    logp,
    lambda rng: rng.normal(size=4),
    gradient=gradient,
    chains=4,
    draws=400,
    warmup=300,
    parameters={"intercept": (), "slope": (3,)},
)
found = diagnostics(result)
parser = argparse.ArgumentParser()
parser.add_argument("--plot")
options = parser.parse_args()
if MPI.COMM_WORLD.rank == 0:
    print(f"R̂ {found['rhat']:.3f}, effective sample size {found['ess_bulk']:.0f} of 1600")
    print("slopes:", result.posterior["slope"].mean(("chain", "draw")).values.round(1))
    if options.plot:
        import arviz

        axes = arviz.plot_trace(result, compact=True)
        for density, trace in axes:
            density.set(ylabel="density")
            trace.set(xlabel="draw", ylabel="value")
        figure = axes.ravel()[0].figure
        figure.tight_layout()
        figure.savefig(options.plot, dpi=100)

# sphinx_gallery_thumbnail_path = "examples/output/mcmc.png"
