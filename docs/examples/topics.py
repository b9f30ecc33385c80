"""Topics of texts
===============

Latent Dirichlet allocation of made texts about three themes, each rank with a part of them::

    mpirun -n 2 python -m mpi4py topics.py

`--plot FILE` draws the log-likelihood of a token after each sweep, for some numbers of ranks.
"""

import sys

import numpy as np
from mpi4py import MPI
from sklearn.feature_extraction.text import CountVectorizer

from sfb.models import LatentDirichletAllocation

THEMES = {
    "sea": "sail wave harbour tide anchor storm island captain",
    "kitchen": "oven flour butter recipe spoon onion garlic soup",
    "orchestra": "violin cello conductor concert melody tempo flute choir",
}


def text(rng):
    """Return a text about one theme or two."""
    themes = rng.choice(list(THEMES), size=2)
    return " ".join(rng.choice(THEMES[rng.choice(themes)].split()) for _ in range(60))


world = MPI.COMM_WORLD
rng = np.random.default_rng(0)
texts = [text(rng) for _ in range(300)]  # every rank makes all texts, and keeps its own
vocabulary = sorted(" ".join(THEMES.values()).split())  # the same on all ranks
X = CountVectorizer(vocabulary=vocabulary).fit_transform(texts)


def fit(comm, **options):
    """Fit the texts of the ranks of a communicator."""
    model = LatentDirichletAllocation(3, doc_topic_prior=0.1, topic_word_prior=0.05, random_state=0, comm=comm)
    return model.set_params(**options).fit(X[comm.rank :: comm.size], vocabulary=vocabulary)


model = fit(world, max_iter=50, optimize_interval=10)
if world.rank == 0:
    for number, words in enumerate(model.top_words(5)):
        print(f"topic {number}: {' '.join(words)}")
    print(f"log-likelihood of a token {model.log_likelihood_:.3f}, perplexity {model.perplexity(X[:50]):.1f}")

if "--plot" in sys.argv:
    curves = {}
    for ranks in sorted({1, 2, world.size}):
        comm = world.Split(0 if world.rank < ranks else MPI.UNDEFINED)
        if comm != MPI.COMM_NULL:
            curves[ranks] = fit(comm, max_iter=40, evaluate_every=1).log_likelihoods_
            comm.Free()
    if world.rank == 0:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for ranks, values in curves.items():
            axes.plot(range(1, len(values) + 1), values, label=f"{ranks} rank{'s' * (ranks > 1)}")
        axes.set(xlabel="sweep", ylabel="log-likelihood of a token, nats")
        axes.legend()
        figure.savefig(sys.argv[sys.argv.index("--plot") + 1], dpi=120)

# sphinx_gallery_thumbnail_path = "models/lda.png"
