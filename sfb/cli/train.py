"""The commands sfb train and sfb compare."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from sfb.cli.common import Failure, Finite, Output, Single, Sizes, json_option, plot_option, start
from sfb.cli.data import data_options, reading
from sfb.cli.fit import FITS
from sfb.cli.groups import Grouped, config_option, group
from sfb.cli.restart import LAUNCHER, run_again
from sfb.files import write
from sfb.models.nets.network import ACTIVATIONS
from sfb.models.registry import MODELS, Entry
from sfb.training.config import COMMS, OPTIMIZERS
from sfb.training.rates import SCHEDULES
from sfb.units import parse_duration

__all__ = ["STOPPED", "compare", "train"]

# The exit code of a run that has stopped before its end and can go on: EX_TEMPFAIL of sysexits.h, "try again".
STOPPED = 75


class Train(Grouped):
    """The command train, which leaves models that are not trained by mini-batches to commands of their own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of the command for the model that comes first; see `click.Command.make_context`."""
        command = FITS.get(args[0]) if args else None
        if command is None:
            return super().make_context(info_name, args, parent, **extra)
        return command.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


class ModelName(click.Choice[str]):
    """The name of a model that is trained by mini-batches."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        if value in FITS:
            self.fail(f"{value} has options of its own and comes first: sfb train {value} [OPTIONS]", param, ctx)
        return super().convert(value, param, ctx)


class Duration(click.ParamType):
    """A time: 90s, 20m, 1h30m, 01:30:00."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds that the text gives."""
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _model_options() -> Iterable[Any]:
    """Return the options that some model of the registry takes."""
    options = {
        "hidden": click.option("--hidden", type=Sizes(1), help="Units of each hidden layer.  [default: 4096,4096]"),
        "activation": click.option(
            "--activation", type=click.Choice(ACTIVATIONS), help="Between layers.  [default: relu]"
        ),
        "components": click.option(
            "--components", type=click.IntRange(1), help="Rows of the matrix to learn.  [default: 64]"
        ),
        "alpha": click.option("--alpha", type=Finite(0), help="Penalty of the sparse codes.  [default: 1]"),
        "candidates": click.option(
            "--candidates",
            type=click.IntRange(1),
            help="The partner of a sample is the nearest of so many.  [default: 8]",
        ),
        "dissimilar_weight": click.option(
            "--dissimilar-weight",
            type=Finite(0, min_open=True),
            help="Weight of pairs that are to be apart.  [default: 8]",
        ),
    }
    for name, option in options.items():
        takers = [model for model, entry in MODELS.items() if name in entry.options]
        if takers:
            yield _described(option, f"({', '.join(takers)})")


def _by_model(name: str) -> str:
    """Return the text of a default that depends on the model.

    >>> from sfb.cli.train import _by_model
    >>> _by_model("lr")
    '0.05; 0.005 of dml, 0.1 of dictionary'
    """
    usual = getattr(Entry, name)
    models: dict[Any, list[str]] = {}
    for model, entry in MODELS.items():
        if (own := getattr(entry, name)) != usual:
            models.setdefault(own, []).append(model)
    others = ", ".join(f"{value} of {' and '.join(names)}" for value, names in models.items())
    return f"{usual}; {others}" if others else str(usual)


def _described(option: Callable[..., Any], takers: str) -> Callable[..., Any]:
    def decorate(command: Any) -> Any:
        command = option(command)
        parameter = command.__click_params__[-1]
        parameter.help = f"{takers} {parameter.help}"
        return command

    return decorate


@click.command(
    cls=Train,
    epilog="\b\nModels with options of their own:\n"
    + "".join(f"  sfb train {name:5} --help    {command.get_short_help_str(80)}\n" for name, command in FITS.items())
    + "\n\b\nExamples:\n"
    "  mpirun -n 4 sfb train mlp --data mnist --optimizer adam --lr 0.001\n"
    "  mpirun -n 4 sfb train mlr --data train.svm --sync ssp:3 --lr 0.5\n"
    "  mpirun -n 4 sfb train mlp --checkpoint run1 --epochs 100       # run again with --resume until it exits with 0\n"
    "  sfb train mlp --checkpoint run1 --restarts 3 --ranks 4         # starts mpirun, again when a rank fails",
)
@click.argument("model", type=ModelName(list(MODELS)))
@group("Data", data_options(learn=True))
@group("Model", *_model_options())
@group(
    "Optimization",
    click.option("--epochs", type=click.IntRange(1), default=5, help="Passes over the training data."),
    click.option("--batch-size", type=click.IntRange(1), default=64,
                 help="Examples of a step on all ranks together."),
    click.option("--optimizer", type=click.Choice(OPTIMIZERS),
                 help=f"Update rule.  [default: {_by_model('optimizer')}; sgd with --l1]"),
    click.option("--lr", type=Finite(0, min_open=True), help=f"Learning rate.  [default: {_by_model('lr')}]"),
    click.option("--schedule", type=click.Choice(SCHEDULES), default="constant",
                 help="How the learning rate changes: in drops, to 0 by a cosine or linearly, or as 1/√step."),
    click.option("--warmup-steps", type=click.IntRange(0), default=0,
                 help="Steps in which the learning rate rises to --lr."),
    click.option("--drop", type=Finite(0, 1, min_open=True), default=0.1,
                 help="Factor of each drop of --schedule step."),
    click.option("--drop-every", type=click.IntRange(1), default=10,
                 help="Epochs between two drops of --schedule step."),
    click.option("--momentum", type=Finite(0, 1, max_open=True), default=0.9, help="Of momentum and nesterov."),
    click.option("--weight-decay", type=Finite(0), default=1e-4, help="Of all parameters but biases."),
    click.option("--l1", type=Finite(0), default=0.0,
                 help="Penalty of magnitudes, by proximal steps; needs --optimizer sgd."),
    click.option("--seed", type=click.IntRange(0), default=0, help="Seed of parameters, split and order."),
    click.option("--target-loss", type=Finite(0), help="End once the mean loss of an epoch is at most this."),
    click.option("--time-limit", type=Duration(),
                 help="End after this time: 90s, 20m, 1h30m, 01:30:00."),
)  # fmt: skip
@group(
    "Communication",
    click.option("--sync", default="bsp", metavar="bsp|ssp:N|asp",
                 help="Wait for all ranks in each step; or let them run at most N steps apart, or freely, through the "
                 "decentralised store."),
    click.option("--comm", default="auto", type=click.Choice(COMMS),
                 help="How ranks exchange gradients under bsp; mpi is plain mpi4py Allreduce."),
    click.option("--overlap/--no-overlap", default=False,
                 help="Exchange a layer's gradient during the backward pass of the others."),
    click.option("--reproducible", is_flag=True,
                 help="Choose algorithms without measuring, for the same bits in every run; --checkpoint implies it."),
    click.option("--topology", default="halton", help="Graph of the ranks under ssp and asp."),
    click.option("--bandwidth", help="Most that a rank sends under ssp and asp, such as 100Mbit/s."),
)  # fmt: skip
@group(
    "Checkpoints",
    click.option("--checkpoint", metavar="DIR", help="Folder to write checkpoints to."),
    click.option("--checkpoint-every", type=click.IntRange(1), metavar="STEPS",
                 help="Steps between two checkpoints.  [default: one after each epoch]"),
    click.option("--keep", type=click.IntRange(1), default=2, help="Checkpoints to keep, the last ones."),
    click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the folder."),
    click.option("--elastic", is_flag=True,
                 help="Go on with the ranks that are left when one dies; needs Open MPI's mpirun --with-ft ulfm."),
)  # fmt: skip
@group(
    "Restarts",
    click.option("--restarts", type=click.IntRange(0), metavar="N",
                 help="Start mpirun, and up to N times again from the last checkpoint when a rank fails. Run it "
                 "without mpirun; needs --checkpoint and --ranks."),
    click.option("--ranks", type=click.IntRange(1), help="Ranks to start, with --restarts."),
    click.option("--shrink", is_flag=True, help="Start each time with a rank less, where memory or a node is gone."),
    click.option("--launcher", default=LAUNCHER, help="What starts the ranks, with --restarts; or 'srun -n {ranks}'."),
)  # fmt: skip
@group(
    "Input and output",
    config_option,
    click.option("--model", "--model-file", "model_file", type=Output(), metavar="FILE.npz",
                 help="Write the trained model."),
    json_option,
    plot_option,
    click.option("--status", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
                 help="Folder for what sfb watch shows of this run.  [default: that of --checkpoint]"),
)  # fmt: skip
def train(
    json_file: Path | None, plot: Path | None, model_file: Path | None, status: Path | None, **options: Any
) -> int:
    """Train a ready-made model, data-parallel.

    mlp is a multilayer perceptron, mlr multiclass logistic regression, svm a linear support vector machine, dml metric
    learning, dictionary sparse coding. The ranks exchange each gradient by the algorithm that suits its shape. A batch
    has the same samples on any number of ranks.

    With --checkpoint, SIGTERM, SIGUSR1, Ctrl-C, --time-limit and the end of a Slurm job (SLURM_JOB_END_TIME) end a run
    after the step under way, with a checkpoint. Exit codes: 0, the run is complete; 75, it has stopped with a
    checkpoint, and --resume goes on; 76, a rank has failed; 1, an error; 2, wrong usage; 130, interrupted without a
    checkpoint.
    """
    restarts, ranks, shrink, launcher = (options.pop(name) for name in ("restarts", "ranks", "shrink", "launcher"))
    if restarts:
        return run_again(sys.argv[2:], options["checkpoint"], restarts, ranks, launcher, shrink=shrink)
    if restarts is None and (ranks is not None or shrink):
        raise click.UsageError("--ranks and --shrink are for --restarts", click.get_current_context())
    if status is not None and options["elastic"]:
        raise click.UsageError("--status does not follow ranks that go on without others, under --elastic")
    world = start()
    from sfb import MismatchError, StoreError
    from sfb.runtime.threads import limit_process
    from sfb.training.config import TrainingError
    from sfb.training.data import DataError
    from sfb.training.live import Live
    from sfb.training.progress import Progress
    from sfb.training.report import draw
    from sfb.training.train import Config
    from sfb.training.train import train as run_training

    names = {name for entry in MODELS.values() for name in entry.options}
    given = {name: options.pop(name) for name in names & {*options}}
    chosen = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}
    config = Config(options=dict(sorted(chosen.items())), reading=reading(options), **options)
    folder = status or (None if config.checkpoint is None else Path(config.checkpoint))
    limit_process(world)
    try:
        with (
            nullcontext() if config.elastic else Live(world, config.title, folder) as live,
            Progress(config, live) as progress,
        ):
            result = run_training(world, config, progress.report, progress.begin, model_file=model_file)
            if live is not None:
                live.stopped = result["stopped"]
    except (DataError, TrainingError, MismatchError, StoreError, ValueError) as error:
        raise Failure(str(error)) from error
    if progress.active:
        if json_file is not None:
            write(json_file, json.dumps(result, indent=1) + "\n")
        if plot is not None and result["epochs"]:
            draw(result, plot)
        progress.finish(result)
        if model_file is not None:
            click.echo(f"written: {model_file}")
    return STOPPED if result["resumable"] else 0


@click.command(cls=Single, epilog="\b\nExample:\n  sfb compare mpi.json auto.json --plot both.png")
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@plot_option
def compare(runs: tuple[Path, ...], json_file: Path | None, plot: Path | None) -> None:
    """Compare training runs, the JSON files of sfb train -J; of two runs, show ratios to the first."""
    from sfb.training.report import ReportError, compare_runs

    try:
        compare_runs(runs, json_file, plot)
    except ReportError as error:
        raise Failure(str(error)) from error
