"""The verb `verify`: whether the files in the store are those that were written.

ledger -> committed checkpoints -> manifest -> hash of every file
served soup/ == soups/<id>/ == blended again from its mix, BatchNorm statistics included
"""

from collections.abc import Callable, Iterator
from typing import Literal

from orchestrator import config
from orchestrator.config import Experiment
from orchestrator.driver.inventory import (
    announced_files,
    checkpoint_problem,
    committed_checkpoints,
    file_problems,
)
from orchestrator.report.write import changed_report_files
from orchestrator.schedule.moment import Moment
from workers.context import cuda_is_available
from workers.errors import UserError
from workers.storage import manifest
from workers.storage.layout import MANIFEST, SERVED, WEIGHTS, checkpoint_dir
from workers.storage.store import Store
from workers.types import Checkpoint

Say = Callable[[str], None]
"""Shows a line of progress."""

SERVED_FILES = (WEIGHTS, "config.json", "soup.json")
"""Files of soup/ that are copies of those in soups/<id>/."""


def verify_experiment(moment: Moment, store: Store, say: Say) -> list[str]:
    """All problems, one sentence each; empty if there are none."""
    state = moment.state
    problems = list(_verify_checkpoints(committed_checkpoints(state), store, say))
    problems += _verify_files(moment, store, say)
    served = state.served.soup if state.served is not None else None
    if served is None:
        say("no soup is served yet")
        return problems
    wrong = [*_verify_served(state.soups[served], store), *_rebuild(moment, store, served)]
    if not wrong:
        say(f"{SERVED}/ is {served}, and blending its mix again gives the same bytes")
    return [*problems, *wrong]


def _verify_checkpoints(
    checkpoints: tuple[Checkpoint, ...], store: Store, say: Say
) -> Iterator[str]:
    gib = sum(checkpoint.num_bytes for checkpoint in checkpoints) / 2**30
    say(f"hashing {len(checkpoints)} checkpoints, {gib:.2f} GiB")
    for done, checkpoint in enumerate(checkpoints, start=1):
        problem = checkpoint_problem(store, checkpoint)
        say(f"[{done}/{len(checkpoints)}] {checkpoint.id}: {problem or 'ok'}")
        if problem is not None:
            yield problem


def _verify_files(moment: Moment, store: Store, say: Say) -> list[str]:
    """Differences of the files that events announced, and of those that follow from the ledger."""
    state, sizes = moment.state, store.sizes()
    if state.preflight is None:
        return []
    problems = [problem for _, problem in file_problems(store, state, sizes)]
    problems += _unlike_runs(moment, store)
    if state.finished is not None:
        changed = sorted(changed_report_files(moment, store))
        problems += [f"{path} in {store} is not what the ledger gives" for path in changed]
    say(f"{len(list(announced_files(state)))} files of splits, predictions, ensembles, analysis")
    for replaced in sorted(state.corrupt):
        if f"{checkpoint_dir(replaced)}/{MANIFEST}" in sizes:
            say(f"{replaced} was found corrupt earlier, and is used no more")
    return problems


def _unlike_runs(moment: Moment, store: Store) -> Iterator[str]:
    """Manifests whose score or base is not the run's."""
    for run in moment.state.runs.values():
        for event in run.checkpoints:
            stored = manifest.read_manifest(store, event.checkpoint.id)
            bases = (None, *moment.state.bases)
            if stored is not None and (stored.score != event.score or stored.base not in bases):
                id_ = event.checkpoint.id
                yield f"the manifest of {id_} in {store} differs from the ledger"


def _verify_served(soup: Checkpoint, store: Store) -> Iterator[str]:
    """Differences between the served folder and the soup of which it is a copy."""
    stored = manifest.read_manifest(store, soup.id)
    files = stored.files if stored is not None else {}
    for name in SERVED_FILES:
        if name not in files:
            yield f"{checkpoint_dir(soup.id)} in {store} has no {name} to compare {SERVED}/ with"
        elif not store.exists(f"{SERVED}/{name}"):
            yield f"{SERVED}/{name} in {store} is missing"
        elif store.hash(f"{SERVED}/{name}") != files[name].sha256:
            yield f"{SERVED}/{name} in {store} differs from that of {soup.id}"


def _rebuild(moment: Moment, store: Store, served: str) -> Iterator[str]:
    """Blend the soup again from its members, and compare the hash of its weights."""
    from workers.context import WorkerContext
    from workers.merging.write_soup import SOUP, SoupFile, rebuild

    soup = moment.state.soups[served]
    try:
        file = SoupFile.model_validate_json(store.read(f"{checkpoint_dir(soup.id)}/{SOUP}"))
        members = tuple(moment.state.checkpoint_named(name) for name in file.mix.names)
        # The experiment may have been moved: its files are in this store.
        worker_config = config.worker_config(moment.config, _device(moment.config))
        worker_config = worker_config.model_copy(update={"uri": store.uri, "ranks": 1})
        sha256 = rebuild(file, members, WorkerContext(worker_config))
    except (OSError, ValueError, KeyError) as error:
        yield f"{served} cannot be blended again from its mix: {error}"
        return
    if sha256 != soup.sha256:
        statistics = ", its BatchNorm statistics included," * (file.cohort.batchnorm == "recompute")
        yield (
            f"{served}, blended again from its mix{statistics} on {worker_config.device}, has "
            f"sha256 {sha256[:12]}... instead of {soup.sha256[:12]}...; on the type of machine "
            "that made it, it should be equal"
        )


def _device(experiment: Experiment) -> Literal["cpu", "cuda"]:
    asked = experiment.fleet.device
    if asked == "auto":
        return "cuda" if cuda_is_available() else "cpu"
    if asked == "cuda" and not cuda_is_available():
        raise UserError(
            "fleet.device is cuda, but torch finds no GPU here; verify on a machine with one"
        )
    return asked
