"""Markov chain Monte Carlo: independent chains, spread over the ranks."""

from sfb.mcmc.chains import diagnostics, run_chains

__all__ = ["diagnostics", "run_chains"]
