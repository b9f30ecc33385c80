"""The commands sfb bench …: models and estimators, to what they reach."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import click

from sfb.cli.common import (
    Failure,
    Finite,
    Names,
    Shapes,
    Sizes,
    check_names,
    examples,
    output_options,
    start,
    timing_options,
)

__all__ = ["COMMANDS"]


@click.command(
    "models", epilog=examples("mpirun -n 4 sfb bench models", "mpirun -n 4 sfb bench models -m mlp --shapes 1024x784")
)
@click.option("-m", "--models", type=Names(), default="mlr,dml,dictionary,mlp",
              help="Any of mlr, a wide logistic regression; dml, metric learning; dictionary; mlp.")  # fmt: skip
@click.option("--shapes", type=Shapes(),
              help="Rows and columns of the largest parameter of each.  "
              "[default: 1000x20000,512x4096,512x8192,2048x784]")  # fmt: skip
@click.option("-a", "--comm", "comms", multiple=True,
              type=click.Choice(["auto", "dense", "broadcast", "node", "pipelined", "sharded"]),
              help="Time only this beside mpi; repeat it for several.  [default: auto]")  # fmt: skip
@click.option("--samples", type=click.IntRange(2), default=768, help="Made samples to learn from, of all ranks.")
@click.option("--batch", type=click.IntRange(1), default=64, help="Examples of a step, of all ranks.")
@click.option("--epochs", type=click.IntRange(1), default=3, help="Epochs of the run whose loss is the target.")
@click.option("-r", "--repeats", type=click.IntRange(1), default=1, help="Times that each case runs.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of samples and parameters.")
@output_options(plot=True)
def bench_models(
    output: dict[str, Any], models: Sequence[str], shapes: Any, comms: Sequence[str], **options: Any
) -> None:
    """Time models to a fixed objective, their gradients as factors beside MPI's Allreduce of dense ones."""
    world = start()
    from sfb.bench import models as benchmark

    check_names("models", models, benchmark.CASES)
    if shapes is not None and len(shapes) != len(models):
        raise Failure(f"--shapes must give one shape for each of {len(models)} models, got {len(shapes)}")
    config = benchmark.Config(models=models, shapes=shapes, comms=("mpi", *(comms or ("auto",))), **options)
    benchmark.run(world, config, **output)


@click.command(
    "estimators", epilog=examples("mpirun -n 4 sfb bench estimators --problems digits --estimators logistic,svc")
)
@click.option("--problems", type=Names(), default="digits,mnist,mnist-csr,sparse",
              help="Any of digits; mnist, 5000 digits; mnist-csr, in CSR form; sparse, made like RCV1.")  # fmt: skip
@click.option("--estimators", type=Names(), default="logistic,svc,mlp", help="Any of logistic, svc and mlp.")
@click.option("-r", "--repeats", type=click.IntRange(1), default=3, help="Fits of each.")
@click.option("-T", "--threads", type=click.IntRange(1), default=1, help="Threads of BLAS in each process.")
@click.option("--tol", type=Finite(0, min_open=True), default=1e-6, help="Tolerance of logistic regression.")
@click.option("--size", type=Finite(0, 1, min_open=True), default=1.0, help="Part of the samples, for a quick run.")
@output_options(plot=True)
def bench_estimators(output: dict[str, Any], **options: Any) -> None:
    """Time estimators to the objective that scikit-learn's reach; scikit-learn's run on rank 0, in turn with ours."""
    world = start()
    if find_spec("sklearn") is None:
        raise Failure("scikit-learn is not installed; install it with pip install 'sfb-mpi[models]'")
    from sfb.bench import estimators
    from sfb.data import DataError

    for key, known in (("problems", estimators.PROBLEMS), ("estimators", estimators.ESTIMATORS)):
        check_names(key, options[key], known)
    try:
        estimators.run(world, estimators.Config(**options), **output)
    except DataError as error:
        raise Failure(str(error)) from error


@click.command("lasso", epilog=examples("mpirun -n 4 sfb bench lasso -N 2000 -D 20000 -a scikit-learn"))
@click.option("-N", "samples", type=click.IntRange(2), default=2000, help="Samples.")
@click.option("-D", "features", type=click.IntRange(1), default=20_000, help="Features.")
@click.option("--correlation", type=Finite(0, 1, max_open=True), default=0.5, help="Of neighbouring features.")
@click.option("--support", type=click.IntRange(1), default=100, help="Features that the targets depend on.")
@click.option("--ratio", "ratios", type=Finite(0, 1, min_open=True), multiple=True, default=[0.1, 0.03],
              help="Alpha, relative to the least for which all coefficients are 0; repeat it for several.")  # fmt: skip
@click.option("--gap", type=Finite(0, min_open=True), default=1e-6, help="Duality gap, relative to the objective.")
@click.option("-a", "--candidate", "candidates", multiple=True,
              type=click.Choice(["sfb", "scikit-learn", "celer", "skglm"]),
              help="Time only this beside sfb; repeat it for several.  [default: all]")  # fmt: skip
@timing_options(10, 1, 120.0, calls="fits")
@output_options(plot=False)
def bench_lasso(output: dict[str, Any], **options: Any) -> None:
    """Time the lasso, until it reaches a duality gap, beside scikit-learn, celer and skglm."""
    world = start()
    if find_spec("sklearn") is None:
        raise Failure("scikit-learn is not installed; install it with pip install 'sfb-mpi[models]'")
    from sfb.bench import lasso

    options["candidates"] = options["candidates"] or lasso.CANDIDATES
    lasso.run(world, lasso.Config(**options), **output)


@click.command("lda", epilog=examples("mpirun -n 4 sfb bench lda -K 20 --documents 10000 -a sfb"))
@click.option("-K", "--topics", type=Sizes(1), default="20,1000", help="Numbers of topics.")
@click.option("--documents", type=click.IntRange(1), default=100_000, help="Documents of all ranks.")
@click.option("--words", type=click.IntRange(1), default=50_000, help="Words.")
@click.option("--length", type=click.IntRange(1), default=100, help="Mean tokens of a document.")
@click.option("-a", "--candidate", "candidates", multiple=True, type=click.Choice(["sfb", "tomotopy", "gensim"]),
              help="Time only this; repeat it for several.  [default: all]")  # fmt: skip
@click.option("-n", "--sweeps", type=click.IntRange(1), default=5, help="Timed sweeps of each candidate.")
@click.option("-w", "--warmups", type=click.IntRange(0), default=5, help="Sweeps before the timed ones.")
@click.option("--blocks", type=click.IntRange(1), default=1, help="Blocks of words for each rank.")
@click.option("--sync", type=click.Choice(["step", "sweep"]), default="step", help="When totals are summed.")
@click.option("--passes", type=click.IntRange(0), default=0, help="Most further passes while others are not done.")
@click.option("--slow", type=Finite(1), default=1.0, help="By which factor rank 0 is slower.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the corpus.")
@output_options(plot=False)
def bench_lda(output: dict[str, Any], **options: Any) -> None:
    """Time sweeps of Gibbs sampling beside tomotopy and gensim, on a made corpus."""
    world = start()
    from sfb.bench import lda

    options["candidates"] = options["candidates"] or lda.CANDIDATES
    missing = [name for name in options["candidates"] if name != "sfb" and find_spec(name) is None]
    if missing:
        raise Failure(f"{', '.join(missing)} is not installed; install it, or name candidates with -a")
    lda.run(world, lda.Config(**options), **output)


@click.command("mf", epilog=examples("mpirun -n 4 sfb bench mf -K 32 --ratings 1000000 -a als-cg -a sgd"))
@click.option("-K", "--factors", type=Sizes(1), default="32,64", help="Numbers of factors.")
@click.option("--users", type=click.IntRange(1), default=200_000, help="Users of all ranks.")
@click.option("--items", type=click.IntRange(1), default=20_000, help="Items.")
@click.option("--ratings", type=click.IntRange(1), default=10_000_000, help="Ratings, about.")
@click.option("-a", "--candidate", "candidates", multiple=True,
              type=click.Choice(["als-cg", "als-cholesky", "sgd", "implicit-cg", "implicit-cholesky"]),
              help="Time only this; repeat it for several.  [default: all]")  # fmt: skip
@click.option("-n", "--epochs", type=click.IntRange(1), default=3, help="Timed epochs of each candidate.")
@click.option("-w", "--warmups", type=click.IntRange(0), default=1, help="Epochs before the timed ones.")
@click.option("--blocks", type=click.IntRange(1), default=1, help="Blocks of items for each rank, with sgd.")
@click.option(
    "--passes", type=click.IntRange(0), default=0, help="Most further passes of sgd while others are not done."
)
@click.option("--slow", type=Finite(1), default=1.0, help="By which factor rank 0 is slower with sgd.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the ratings.")
@output_options(plot=False)
def bench_mf(output: dict[str, Any], **options: Any) -> None:
    """Time epochs of matrix factorization beside the package implicit, on made ratings."""
    world = start()
    from sfb.bench import factorization

    options["candidates"] = options["candidates"] or factorization.CANDIDATES
    if find_spec("implicit") is None and any(name.startswith("implicit") for name in options["candidates"]):
        raise Failure("implicit is not installed; install it, or name candidates with -a")
    factorization.run(world, factorization.Config(**options), **output)


@click.command("slow", epilog=examples("mpirun -n 4 sfb bench slow -m mf --passes 0,10 --slow 4"))
@click.option("-m", "--models", type=Names(), default="lda,mf", help="Any of lda and mf.")
@click.option("--passes", type=Sizes(0), default="0,10", help="Most further passes over a block, one case each.")
@click.option("--slow", type=Finite(1), default=4.0, help="By which factor rank 0 is slower.")
@click.option("-t", "--seconds", type=Finite(0, min_open=True), default=10.0, help="Seconds of each case.")
@click.option("--size", type=click.IntRange(1), default=4000, help="Documents, or thousands of ratings.")
@click.option("--topics", type=click.IntRange(1), default=50, help="Topics of lda.")
@click.option("--factors", type=click.IntRange(1), default=16, help="Factors of mf.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of data and models.")
@output_options(plot=True)
def bench_slow(output: dict[str, Any], **options: Any) -> None:
    """Let blocks rotate while rank 0 is slow, with and without further passes of the others."""
    world = start()
    from sfb.bench import slow

    check_names("models", options["models"], slow.MODELS)
    slow.run(world, slow.Config(**options), **output)


COMMANDS = (bench_models, bench_estimators, bench_lasso, bench_lda, bench_mf, bench_slow)
