"""The command line `soupfleet VERB ...`: options and output. `commands/` does the work.

Exit codes: 0 done; 2 a mistake that the user can correct, a damaged store, or a failed `verify`;
3 done, but some or all runs failed, or the store failed for too long; 4 stopped by the user; 1 a
bug of ours.
"""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from orchestrator import config
from orchestrator.commands.run import (
    BAD,
    PARTLY,
    Options,
    RunOutcome,
    planned,
    run_experiment,
)
from orchestrator.driver.contents import read_experiment, read_state
from orchestrator.driver.patience import StoreUnavailable
from orchestrator.driver.signals import STOPPED
from orchestrator.report.terminal.console import console
from orchestrator.report.terminal.tables import final_table, status_json, status_view
from orchestrator.report.write import write_report
from orchestrator.schedule.moment import Moment
from workers.errors import UserError, first_line
from workers.storage.layout import FINISH
from workers.storage.store import Store
from workers.text import one_line, printable, shortened

OS_REMEDY = "repair the file or the disk, and repeat the command"


class Verbs(typer.core.TyperGroup):
    """The verbs. An interrupted one says so; by itself click would end with 1, a bug of ours."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("soupfleet: stopped", file=sys.stderr)
            sys.exit(STOPPED)


app = typer.Typer(
    cls=Verbs,
    help="Fine-tune a fleet of image classifiers and get back one better model: a soup.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, e.g. configs/x.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[k=v ...]", help="Keys to set, e.g. train.lr=1e-3.")
]
Uri = Annotated[
    str, typer.Argument(metavar="URI", help="Folder or URI of an experiment: STORAGE/NAME.")
]
Storage = Annotated[str | None, typer.Option(help="Folder or pyarrow.fs URI for experiments.")]
Name = Annotated[str | None, typer.Option(help="Name of the experiment in the storage.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def plan(
    config_file: Config,
    overrides: Overrides = None,
    as_json: AsJson = False,
    storage: Storage = None,
    name: Name = None,
) -> None:
    """Check a configuration with its data and model; print runs, resources, storage and time.

    Nothing is started or left behind.
    """
    from orchestrator.commands.plan import make_plan, plan_view

    experiment = config.load(config_file, overrides or [], storage=storage, name=name)
    made = make_plan(experiment)
    if as_json:
        print(json.dumps(made.summary))
    else:
        console().print(plan_view(made))


@app.command()
def run(
    config_file: Config,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster: local, auto or HOST:PORT. Default: RAY_ADDRESS, or local."),
    ] = None,
    storage: Storage = None,
    name: Name = None,
    fleet: Annotated[str, typer.Option(help="ray, or local: one worker in this process.")] = "ray",
    extend: Annotated[
        bool,
        typer.Option(
            "--extend", help="Allow more runs, recipes and ensembles; the served soup may change."
        ),
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Replace a running driver.")
    ] = False,
    plain: Annotated[
        bool | None, typer.Option("--plain/--live", help="Print lines, or show a live table.")
    ] = None,
) -> None:
    """Run an experiment to its end. The same command again continues it.

    A key that neither CONFIG nor an override names keeps the value that the experiment began with.
    """
    if fleet not in ("ray", "local"):
        raise UserError(f"--fleet is {fleet!r}; write ray or local")
    experiment = config.load(config_file, overrides or [], storage=storage, name=name)
    options = Options(
        address=address or os.environ.get("RAY_ADDRESS") or "local",
        fleet="local" if fleet == "local" else "ray",
        extend=extend,
        take_over=take_over,
        plain=plain,
    )
    _show_outcome(run_experiment(experiment, options), config.shown_uri(experiment))


@app.command()
def status(
    uri: Uri,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until the experiment ends.")
    ] = False,
) -> None:
    """Show the state of an experiment, from any machine that reaches its storage."""
    from orchestrator.commands.status import watch_status

    if watch and not as_json:
        watch_status(Store(uri), uri)
        return
    moment, _ = _replayed(uri)
    if as_json:
        print(json.dumps(status_json(moment)))
    else:
        console().print(status_view(moment, uri))


@app.command()
def report(uri: Uri) -> None:
    """Write results.json, summary.csv and report.html again."""
    moment, store = _replayed(uri)
    results = write_report(moment, store)
    console().print(final_table(results, uri))


@app.command()
def finish(uri: Uri) -> None:
    """Stop training now, and make soups of the committed checkpoints.

    The running driver does this; without one, the next `run` does.
    """
    moment, store = _replayed(uri)
    if moment.state.finished is not None:
        print(f"{uri} is already finished.")
        return
    store.write(FINISH, b"")
    print(f"{uri} will finish: its driver ends training within seconds, then makes the soups.")


@app.command()
def logs(
    uri: Uri, run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run.")]
) -> None:
    """Print the logs of all attempts of a run."""
    from orchestrator.commands.status import run_log

    sys.stdout.write(printable(run_log(_existing(uri), run_id)))


@app.command()
def soup(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT...", help="Files of weights, or their folders.")
    ],
    model: Annotated[str, typer.Option(help="Architecture, by its timm name.")],
    data: Annotated[
        str,
        typer.Option(
            help="Folder of val/ and test/, or of class folders, whose images are halved."
        ),
    ],
    recipe: Annotated[str, typer.Option(help="Recipes, e.g. greedy,uniform, or all.")],
    out: Annotated[str, typer.Option(help="New folder for the soup and its report.")],
    base: Annotated[
        str | None, typer.Option(help="Weights that all checkpoints were fine-tuned from.")
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Class folders of training images, for BatchNorm statistics.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the halves and of random recipes.")] = 0,
    ema: Annotated[
        bool, typer.Option("--ema", help="Use the averaged weights in the files.")
    ] = False,
    image_size: Annotated[
        int | None, typer.Option(help="Input size in pixels. Default: that of the model.")
    ] = None,
    kwargs: Annotated[
        str | None,
        typer.Option(help="Arguments of timm.create_model as YAML, e.g. '{img_size: 96}'."),
    ] = None,
    batchnorm: Annotated[
        str, typer.Option(help="BatchNorm statistics, as soup.batchnorm of a configuration.")
    ] = "auto",
    metric: Annotated[
        str, typer.Option(help="Score that selects: top1, macro_f1 or nll.")
    ] = "top1",
    threads: Annotated[
        int, typer.Option(help="CPU threads; they affect the bytes of a result on CPUs.")
    ] = 1,
    plain: Annotated[
        bool | None, typer.Option("--plain/--live", help="Print lines, or show a live table.")
    ] = None,
) -> None:
    """Make soups of checkpoints that were trained elsewhere, e.g. by timm's train script."""
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
    model_dir: Annotated[
        str, typer.Argument(metavar="MODEL_DIR", help="Folder soup/ of an experiment.")
    ],
    data: Annotated[str, typer.Option(help="Folder of class folders.")],
    as_json: AsJson = False,
) -> None:
    """Score a model on class folders, which are matched to its labels by name."""
    from orchestrator.commands.status import score_view
    from workers.serving.served_model import evaluate_folder

    score = evaluate_folder(Path(model_dir), Path(data))
    if as_json:
        print(json.dumps(score.model_dump()))
    else:
        console().print(score_view(score, model_dir, data))


@app.command()
def predict(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Folder soup/; with --ensemble, an experiment's URI."),
    ],
    images: Annotated[str, typer.Argument(help="An image, or a folder of images.")],
    out: Annotated[str, typer.Option(help="CSV file to write: image, label, confidence.")],
    ensemble: Annotated[
        str | None, typer.Option(metavar="ID", help="Use an ensemble: soft_voting or stacking.")
    ] = None,
) -> None:
    """Label images with the served model or an ensemble of an experiment."""
    from orchestrator.commands.predict import label_images

    store = _existing(model) if ensemble is not None else None
    _say(label_images(Path(model), Path(images), Path(out), store, ensemble))


@app.command()
def verify(uri: Uri) -> None:
    """Check the hash of every committed file, and blend the served soup again to compare bytes."""
    from orchestrator.commands.verify import verify_experiment

    moment, store = _replayed(uri)
    problems = verify_experiment(moment, store, say=_say)
    if problems:
        raise UserError(f"{uri} is not intact: {'; '.join(problems)}")


@app.command()
def submit(
    config_file: Config,
    overrides: Overrides = None,
    address: Annotated[str, typer.Option(help="Dashboard of the Ray head: http://HEAD:8265")] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Print the job's log, and exit with its exit code.")
    ] = False,
    storage: Storage = None,
    name: Name = None,
) -> None:
    """Run an experiment as a Ray job on a cluster."""
    from orchestrator.commands.submit import submit_job

    experiment = config.load(config_file, overrides or [], storage=storage, name=name)
    raise typer.Exit(submit_job(experiment, address, wait))


def _show_outcome(outcome: RunOutcome, uri: str) -> None:
    """Print the final table, and end the command with its exit code."""
    if outcome.results is None:
        print(f"Stopped. The same command continues {uri}.")
    else:
        if not outcome.worked:
            for path in outcome.repaired:
                print(f"{path} in {uri} was missing or changed, and was written again.")
            print(f"{uri} is already finished; nothing {'else ' * bool(outcome.repaired)}was done.")
        console().print(final_table(outcome.results, uri))
    raise typer.Exit(outcome.exit_code)


def _say(text: str) -> None:
    """Print a line, in which names from data cannot steer the terminal."""
    print(one_line(text))


def _existing(uri: str) -> Store:
    """The store of an experiment; refuses a place without one."""
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
    return Moment(planned(experiment), read_state(store)), store


def _os_problem(error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        name = one_line(shortened(str(error.filename), 200))
        return f"the name {name} is too long for a file; shorten it"
    return f"{one_line(first_line(error))}; {OS_REMEDY}"


def main() -> None:
    """Run a verb. A mistake of the user, or a file or disk that fails, is one sentence on stderr
    and exit code 2."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"soupfleet: {one_line(str(error))}", file=sys.stderr)
        sys.exit(BAD)
    except StoreUnavailable as error:
        print(f"soupfleet: {one_line(str(error))}", file=sys.stderr)
        sys.exit(PARTLY)
    except OSError as error:
        print(f"soupfleet: {_os_problem(error)}", file=sys.stderr)
        sys.exit(BAD)
    except KeyboardInterrupt:
        print("soupfleet: stopped before it began", file=sys.stderr)
        sys.exit(STOPPED)
