"""The commands sfb train lasso, sfb train mf and sfb train lda, whose models are not trained by mini-batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from sfb.cli.common import Failure, Finite, Output, json_option, start
from sfb.cli.data import data_options, reading
from sfb.cli.groups import Grouped, config_option, group
from sfb.files import write

__all__ = ["FITS"]

_seed = click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the split and of what is drawn.")
_model_file = click.option(
    "--model", "--model-file", "model_file", type=Output(), metavar="FILE.npz", help="Write the model."
)
_OUTPUT = (config_option, _model_file, json_option)


def _held_out(what: str) -> Callable[[Any], Any]:
    return click.option(
        "--test-fraction",
        type=Finite(0, 1, max_open=True),
        default=0.1,
        help=f"Part of the {what} to hold out for testing; 0 for none.",
    )


@click.command(
    cls=Grouped,
    epilog="\b\nExample:\n  mpirun -n 4 sfb train lasso --data train.svm --alpha 0.1 --tol 1e-6 --model lasso.npz",
)
@group("Data", data_options(learn=True, regression=True))
@group(
    "Model",
    click.option("--alpha", type=Finite(0, min_open=True), default=1.0, help="Weight of the penalties."),
    click.option(
        "--l1-ratio",
        type=Finite(0, 1, min_open=True),
        default=1.0,
        help="Part of the L1 penalty; below 1 for an elastic net.",
    ),
    click.option("--intercept/--no-intercept", "fit_intercept", default=True, help="Fit an intercept."),
    click.option("--positive", is_flag=True, help="Coefficients must be ≥ 0."),
)
@group(
    "Optimization",
    click.option("--tol", type=Finite(0), default=1e-4, help="Duality gap, relative to the objective, to end at."),
    click.option("--max-iter", type=click.IntRange(1), default=100, help="Most working sets."),
    click.option("--max-epochs", type=click.IntRange(1), default=50_000, help="Most passes over working sets."),
    click.option(
        "--schedule",
        type=click.Choice(["replicated", "priority"]),
        default="replicated",
        help="All ranks take the same steps; or each updates other coefficients, by sfb.schedule.Priority.",
    ),
    _seed,
)
@group("Input and output", *_OUTPUT)  # fmt: skip
def lasso(data: str, seed: int, json_file: Path | None, model_file: Path | None, **settings: Any) -> None:
    """Linear regression with an L1 penalty; features are divided among the ranks.

    Each rank passes its samples; the ranks exchange them for some features of all samples. Minimised is
    ‖y − Xβ − b‖²/2n + alpha·(l1_ratio·‖β‖₁ + (1 − l1_ratio)·‖β‖²/2), to a duality gap.
    """
    arguments = {"seed": seed, "reading": reading(settings), "model_file": model_file}
    _run("fit_lasso", data, settings, arguments, json_file, _show_lasso)


@click.command(
    cls=Grouped,
    epilog="\b\nExamples:\n"
    "  mpirun -n 4 sfb train mf --data ratings.csv --components 20 --epochs 20 --model mf.npz\n"
    "  mpirun -n 4 sfb train mf --data ratings.csv --components 20 --solver sgd --blocks-per-rank 2",
)
@group(
    "Data",
    click.option("--data", required=True, metavar="FILE", help="Ratings: text such as MovieLens's, .npz or Parquet."),
    click.option(
        "--duplicates",
        type=click.Choice(["error", "mean", "sum", "last"]),
        default="error",
        help="What becomes of several ratings of a user for an item.",
    ),
    click.option(
        "--rating-range",
        type=(Finite(), Finite()),
        metavar="LEAST MOST",
        help="Limits of ratings, for checks and predictions.",
    ),
    _held_out("ratings"),
)
@group(
    "Model",
    click.option("--components", "n_components", type=click.IntRange(1), default=10, help="Factors of a user."),
    click.option(
        "--feedback",
        type=click.Choice(["explicit", "implicit"]),
        default="explicit",
        help="Ratings, or strengths of feedback such as counts of views.",
    ),
    click.option("--regularization", type=Finite(0, min_open=True), default=0.05, help="Weight of the penalty."),
    click.option(
        "--confidence",
        type=Finite(0, min_open=True),
        help="(implicit) Weight of the strength of feedback.  [default: 1]",
    ),
    click.option("--no-biases", is_flag=True, help="(explicit) Leave out the mean and the biases."),
)
@group(
    "Optimization",
    click.option(
        "--solver",
        type=click.Choice(["als", "sgd"]),
        default="als",
        help="Alternating least squares; or a gradient step for each rating, while items rotate.",
    ),
    click.option("--epochs", "max_iter", type=click.IntRange(1), default=50, help="Most epochs."),
    click.option(
        "--tol",
        type=Finite(0),
        default=1e-4,
        help="Relative decrease of the objective at which to end; 0 to make all epochs.",
    ),
    click.option(
        "--subproblem",
        type=click.Choice(["cholesky", "cg"]),
        help="(als) Solve for a user exactly, or by conjugate gradients.  [default: cholesky]",
    ),
    click.option(
        "--lr",
        "learning_rate",
        type=Finite(0, min_open=True),
        help="(sgd) First learning rate, times the deviation of the ratings.  [default: 0.02]",
    ),
    click.option(
        "--blocks-per-rank",
        type=click.IntRange(1),
        help="(sgd) Blocks of items for each rank; two or more travel while ranks work.  [default: 1]",
    ),
    click.option(
        "--extra-passes",
        type=click.IntRange(0),
        help="(sgd) Most further passes over a block while slower ranks work.  [default: 0]",
    ),
    _seed,
)
@group("Input and output", *_OUTPUT)  # fmt: skip
def mf(
    data: str,
    seed: int,
    test_fraction: float,
    json_file: Path | None,
    model_file: Path | None,
    no_biases: bool,
    **settings: Any,
) -> None:
    """Factors of users and items from ratings, each rank with its users.

    The model file holds the factors of all users and items with the names that the data gives them:
    sfb.models.load(FILE).predict(users, items) and recommend(user).
    """
    _refuse("solver", settings, als=("subproblem",), sgd=("learning_rate", "blocks_per_rank", "extra_passes"))
    _refuse("feedback", settings | {"no_biases": no_biases or None}, explicit=("no_biases",), implicit=("confidence",))
    if settings["feedback"] == "implicit" and settings["solver"] == "sgd":
        raise click.UsageError("--solver sgd takes explicit feedback only", click.get_current_context())
    chosen = {name: value for name, value in settings.items() if value is not None}
    arguments = {"seed": seed, "test_fraction": test_fraction, "model_file": model_file}
    _run("fit_mf", data, {**chosen, "biases": not no_biases}, arguments, json_file, _show_mf)


@click.command(
    cls=Grouped,
    epilog="\b\nExample:\n"
    "  mpirun -n 4 sfb train lda --data docword.nips.txt.gz --vocabulary vocab.nips.txt --components 20 --epochs 100",
)
@group(
    "Data",
    click.option(
        "--data",
        required=True,
        metavar="FILE",
        help="Counts of words: UCI's docword file, maybe .gz, .bz2 or .xz; or .npz of scipy.sparse.",
    ),
    click.option("--vocabulary", metavar="FILE", help="The words, one a line."),
    _held_out("documents"),
)
@group(
    "Model",
    click.option("--components", "n_components", type=click.IntRange(1), default=10, help="Topics."),
    click.option(
        "--alpha",
        "doc_topic_prior",
        type=Finite(0, min_open=True),
        help="Prior of topics in a document.  [default: 1/topics]",
    ),
    click.option(
        "--beta",
        "topic_word_prior",
        type=Finite(0, min_open=True),
        help="Prior of words in a topic.  [default: 1/topics]",
    ),
    click.option(
        "--optimize-interval",
        type=click.IntRange(0),
        default=0,
        help="Sweeps between two fits of the priors; 0 to keep them.",
    ),
)
@group(
    "Optimization",
    click.option("--epochs", "max_iter", type=click.IntRange(1), default=200, help="Sweeps over all tokens."),
    click.option(
        "--evaluate-every",
        type=click.IntRange(0),
        default=10,
        help="Sweeps between two log-likelihoods in the report; 0 for none.",
    ),
    click.option(
        "--sync",
        type=click.Choice(["step", "sweep"]),
        default="step",
        help="When ranks sum the totals of topics: after each block, or each sweep.",
    ),
    click.option(
        "--blocks-per-rank",
        type=click.IntRange(1),
        default=1,
        help="Blocks of words for each rank; two or more travel while ranks sample.",
    ),
    click.option(
        "--extra-passes",
        type=click.IntRange(0),
        default=0,
        help="Most further passes over a block while slower ranks work.",
    ),
    _seed,
)
@group("Input and output", *_OUTPUT)  # fmt: skip
def lda(
    data: str,
    seed: int,
    test_fraction: float,
    vocabulary: str | None,
    json_file: Path | None,
    model_file: Path | None,
    **settings: Any,
) -> None:
    """Topics of documents by Gibbs sampling; blocks of words rotate among the ranks."""
    arguments = {
        "seed": seed,
        "test_fraction": test_fraction,
        "vocabulary": vocabulary,
        "model_file": model_file,
    }
    _run("fit_lda", data, settings, arguments, json_file, _show_lda)


FITS: dict[str, click.Command] = {"lasso": lasso, "mf": mf, "lda": lda}


def _refuse(option: str, settings: dict[str, Any], **own: tuple[str, ...]) -> None:
    """Raise UsageError if an option was given that belongs to another choice of ``option``."""
    context = click.get_current_context()
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for choice, names in own.items():
        for name in names:
            if settings[option] != choice and settings[name] is not None:
                raise click.UsageError(
                    f"{flags[name]} is an option of --{option} {choice}, not of --{option} {settings[option]}", context
                )


def _run(
    name: str,
    data: str,
    settings: dict[str, Any],
    arguments: dict[str, Any],
    json_file: Path | None,
    show: Callable[[dict[str, Any]], None],
) -> None:
    """Fit by a function of `sfb.training.fits`, and report the result on rank 0; collective."""
    world = start()
    from sfb import MismatchError
    from sfb.runtime.threads import limit_process
    from sfb.training.config import TrainingError
    from sfb.training.data import DataError

    try:
        fit = getattr(import_module("sfb.training.fits"), name)
    except ImportError as error:
        raise Failure(f"needs the package {error.name}: pip install 'sfb-mpi[models]'") from error
    limit_process(world)
    try:
        result = fit(world, data, settings, **arguments)
    except (DataError, TrainingError, MismatchError, ValueError, TypeError) as error:
        raise Failure(str(error)) from error
    if world.rank == 0:
        if json_file is not None:
            write(json_file, json.dumps(result, indent=1) + "\n")
        show(result)
        if arguments["model_file"] is not None:
            click.echo(f"written: {arguments['model_file']}")


def _show_lasso(run: dict[str, Any]) -> None:
    click.echo(
        f"{run['samples']} samples, {run['features']} features: objective {run['objective']:.6g}, duality gap "
        f"{run['gap']:.2g} ({run['relative_gap']:.2g} of the objective)"
    )
    click.echo(f"{run['nonzeros']} coefficients are not 0, {run['screened']} were proved to be 0")
    if run["r2"] is not None:
        click.echo(f"test R² {run['r2']:.4f}, of {run['test_samples']} samples")
    what = f"{run['working_sets']} working sets, {run['passes']} passes"
    _show_end(run, what, "raise --alpha, --tol, --max-iter or --max-epochs")


def _show_mf(run: dict[str, Any]) -> None:
    click.echo(f"{run['ratings']} ratings of {run['users']} users for {run['items']} items: RMSE {run['rmse']:.4f}")
    if run["test_rmse"] is not None:
        click.echo(f"test RMSE {run['test_rmse']:.4f}, of {run['test_ratings']} ratings")
    if run["objective"] is not None:
        click.echo(f"objective {run['objective']:.6g}")
    _show_end(run, f"{run['epochs']} epochs", "raise --epochs or --tol")


def _show_lda(run: dict[str, Any]) -> None:
    every = run["settings"]["evaluate_every"]
    for number, value in enumerate(run["log_likelihoods"], 1):
        click.echo(f"sweep {number * every}: log-likelihood per token {value:.4f}")
    click.echo(
        f"{run['documents']} documents, {run['words']} words, {run['tokens']} tokens: log-likelihood per token "
        f"{run['log_likelihood']:.4f}"
    )
    if run["perplexity"] is not None:
        click.echo(f"test perplexity {run['perplexity']:.1f}, of {run['test_documents']} documents")
    for number, words in enumerate(run["top_words"]):
        click.echo(f"topic {number}: {' '.join(map(str, words))}")
    _show_end(run, f"{run['sweeps']} sweeps", "")


def _show_end(run: dict[str, Any], what: str, advice: str) -> None:
    """Show how long a fit took, and warn if it has not converged."""
    click.echo(f"{what} in {run['seconds']:.2f} s on {run['environment']['ranks']} ranks")
    if not run["converged"]:
        click.echo(f"warning: the solver has not converged: {advice}", err=True)
