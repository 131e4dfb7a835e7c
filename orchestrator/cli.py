"""The command: `soupfleet VERB ...`. Each verb reads like a sentence; what it does lives elsewhere.

Exit codes: 0 done; 2 the user must mend something; 3 done, but some or all runs failed; 4 stopped
by the user; 1 a bug of ours.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator import config
from orchestrator.commands.run import (
    BAD,
    Options,
    RunOutcome,
    planned,
    read_experiment,
    run_experiment,
)
from orchestrator.driver.ledger import Ledger
from orchestrator.driver.signals import STOPPED
from orchestrator.report.terminal.tables import final_table, status_json, status_view
from orchestrator.report.write import write_report
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import fold
from workers.errors import UserError
from workers.storage.layout import FINISH
from workers.storage.store import Store

PIPE_WIDTH = 130

app = typer.Typer(
    help="Fine-tune a fleet of image classifiers and get back one better model: a soup.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, e.g. configs/x.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[k=v ...]", help="Settings to change, e.g. seed=1.")
]
Uri = Annotated[str, typer.Argument(metavar="URI", help="Of an experiment: STORAGE/NAME.")]
Storage = Annotated[str | None, typer.Option(help="Folder or pyarrow.fs URI for experiments.")]
Name = Annotated[str | None, typer.Option(help="Name of the experiment in the storage.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


@app.command()
def plan(
    config_file: Config,
    overrides: Overrides = None,
    as_json: AsJson = False,
    storage: Storage = None,
    name: Name = None,
) -> None:
    """Validate, survey data and models, print runs, resources, storage and time; start none."""
    from orchestrator.commands.plan import make_plan, plan_view

    experiment = config.load(config_file, overrides or [], storage=storage, name=name)
    made = make_plan(experiment)
    if as_json:
        print(json.dumps(made.summary))
    else:
        _console().print(plan_view(made))


@app.command()
def run(
    config_file: Config,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="Ray: local, auto or HOST:PORT. Default: RAY_ADDRESS, local.")
    ] = None,
    storage: Storage = None,
    name: Name = None,
    fleet: Annotated[str, typer.Option(help="ray, or local: all in this process.")] = "ray",
    extend: Annotated[
        bool,
        typer.Option("--extend", help="Add runs, recipes, ensembles; the served soup may change."),
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Replace the driver that holds the lease.")
    ] = False,
    plain: Annotated[
        bool | None, typer.Option("--plain/--live", help="Lines, or a live table.")
    ] = None,
) -> None:
    """Run an experiment to its end; the same command again continues it."""
    if fleet not in ("ray", "local"):
        raise UserError(f"--fleet {fleet} is unknown; use ray or local")
    experiment = config.load(config_file, overrides or [], storage=storage, name=name)
    options = Options(
        address=address or os.environ.get("RAY_ADDRESS") or "local",
        fleet="local" if fleet == "local" else "ray",
        extend=extend,
        take_over=take_over,
        plain=plain,
    )
    _show_outcome(run_experiment(experiment, options), config.uri(experiment))


@app.command()
def status(
    uri: Uri,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until finished.")] = False,
) -> None:
    """Show the fleet from its store, from any machine."""
    from orchestrator.commands.status import watch_status

    if watch and not as_json:
        watch_status(Store(uri), uri)
        return
    moment, _ = _replayed(uri)
    if as_json:
        print(json.dumps(status_json(moment)))
    else:
        _console().print(status_view(moment, uri))


@app.command()
def report(uri: Uri) -> None:
    """Write results.json, summary.csv and report.html anew."""
    moment, store = _replayed(uri)
    results = write_report(moment, store)
    _console().print(final_table(results, uri))


@app.command()
def finish(uri: Uri) -> None:
    """Stop training and soup what is committed; whoever drives the experiment obeys."""
    moment, store = _replayed(uri)
    if moment.state.finished is not None:
        print(f"{uri} is finished already.")
        return
    store.write(FINISH, b"")
    print(f"Asked {uri} to finish: training ends within seconds, then come the soups.")


@app.command()
def logs(uri: Uri, run_id: Annotated[str, typer.Argument(metavar="RUN")]) -> None:
    """Print a run's log, all attempts."""
    from orchestrator.commands.status import run_log

    sys.stdout.write(run_log(_existing(uri), run_id))


@app.command()
def soup(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT...", help="Files of weights, or their folders.")
    ],
    model: Annotated[str, typer.Option(help="Architecture: a timm name.")],
    data: Annotated[str, typer.Option(help="Folder of val/ and test/, or of classes to halve.")],
    recipe: Annotated[str, typer.Option(help="Names as in greedy,uniform; or all.")],
    out: Annotated[str, typer.Option(help="New folder for the soup and its report.")],
    base: Annotated[
        str | None, typer.Option(help="Weights that all checkpoints were fine-tuned from.")
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Class folders of training images, for BatchNorm.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the halves, and of recipes that draw.")] = 0,
    ema: Annotated[bool, typer.Option("--ema", help="The averaged weights of each file.")] = False,
    image_size: Annotated[int | None, typer.Option(help="Pixels; the model's own if not.")] = None,
    kwargs: Annotated[
        str | None, typer.Option(help="Of timm.create_model, as YAML: '{img_size: 96}'.")
    ] = None,
    batchnorm: Annotated[str, typer.Option(help="As soup.batchnorm of a config.")] = "auto",
    metric: Annotated[str, typer.Option(help="What selects: top1, macro_f1 or nll.")] = "top1",
    threads: Annotated[int, typer.Option(help="CPU threads; part of a CPU result's bits.")] = 1,
    plain: Annotated[
        bool | None, typer.Option("--plain/--live", help="Lines, or a live table.")
    ] = None,
) -> None:
    """Make soups of checkpoints trained elsewhere, e.g. by timm's train script."""
    from orchestrator.commands.soup import SoupRequest, make_soups

    request = SoupRequest(
        checkpoints=tuple(checkpoints),
        model=model,
        data=data,
        recipe=recipe,
        out=out,
        base=base,
        train=train,
        seed=seed,
        ema=ema,
        image_size=image_size,
        kwargs=kwargs,
        batchnorm=batchnorm,
        metric=metric,
        threads=threads,
    )
    _show_outcome(make_soups(request, plain), out)


@app.command()
def evaluate(
    model_dir: Annotated[str, typer.Argument(metavar="MODEL_DIR", help="A served soup/ folder.")],
    data: Annotated[str, typer.Option(help="Folder of class folders.")],
    as_json: AsJson = False,
) -> None:
    """Score a model on class folders, matched by name to its labels."""
    from orchestrator.commands.status import score_view
    from workers.serving.served_model import evaluate_folder

    score = evaluate_folder(Path(model_dir), Path(data))
    if as_json:
        print(json.dumps(score.model_dump()))
    else:
        _console().print(score_view(score, model_dir, data))


@app.command()
def predict(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A served soup/ folder; an experiment's URI.")
    ],
    images: Annotated[str, typer.Argument(help="An image, or a folder of images.")],
    out: Annotated[str, typer.Option(help="CSV file: image, label, confidence.")],
    ensemble: Annotated[
        str | None, typer.Option(metavar="ID", help="soft_voting or stacking; MODEL is a URI.")
    ] = None,
) -> None:
    """Label images with a served model, or with an ensemble of an experiment."""
    from orchestrator.commands.predict import label_images

    store = _existing(model) if ensemble is not None else None
    print(label_images(Path(model), Path(images), Path(out), store, ensemble))


@app.command()
def verify(uri: Uri) -> None:
    """Check every committed file, rebuild the served soup from its mix and compare bytes."""
    from orchestrator.commands.verify import verify_experiment

    moment, store = _replayed(uri)
    problems = verify_experiment(moment, store, say=print)
    if problems:
        raise UserError(f"{uri} does not verify: {'; '.join(problems)}")


@app.command()
def submit(
    config_file: Config,
    overrides: Overrides = None,
    address: Annotated[str, typer.Option(help="Of the head's dashboard: http://HEAD:8265")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Follow it; exit with its code.")] = False,
    storage: Storage = None,
    name: Name = None,
) -> None:
    """Run an experiment as a Ray job on a cluster."""
    from orchestrator.commands.submit import submit_job

    experiment = config.load(config_file, overrides or [], storage=storage, name=name)
    raise typer.Exit(submit_job(experiment, address, wait))


def _show_outcome(outcome: RunOutcome, uri: str) -> None:
    """The final table; ends the command with its exit code."""
    if outcome.results is None:
        print(f"Stopped. The same command goes on where this one left {uri}.")
    else:
        if not outcome.worked:
            print(f"{uri} is finished; there was nothing left to do.")
        _console().print(final_table(outcome.results, uri))
    raise typer.Exit(outcome.exit_code)


def _console() -> Console:
    """Pipes and job logs have no width; the tables need this much."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def _existing(uri: str) -> Store:
    store = Store(uri)
    if read_experiment(store) is None:
        raise UserError(
            f"there is no experiment at {uri}; give STORAGE/NAME, as in runs/quickstart"
        )
    return store


def _replayed(uri: str) -> tuple[Moment, Store]:
    store = _existing(uri)
    experiment = read_experiment(store)
    assert experiment is not None
    return Moment(planned(experiment), fold(Ledger(store).replay())), store


def main() -> None:
    """Run a verb; a user's mistake is one sentence on stderr and exit code 2."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"soupfleet: {error}", file=sys.stderr)
        sys.exit(BAD)
    except KeyboardInterrupt:
        print("soupfleet: stopped before it had begun", file=sys.stderr)
        sys.exit(STOPPED)
