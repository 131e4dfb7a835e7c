"""The verb `verify`: whether the files in the store are those that were written.

ledger -> committed checkpoints -> manifest -> hash of every file
served soup/ == soups/<id>/ == blended again from its mix, BatchNorm statistics included
"""

from collections.abc import Callable, Iterator
from typing import Literal

from orchestrator import config
from orchestrator.config import Experiment
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from workers.context import cuda_is_available
from workers.errors import UserError
from workers.storage import manifest
from workers.storage.layout import SERVED, WEIGHTS, checkpoint_dir
from workers.storage.store import CorruptFile, Store
from workers.types import Checkpoint

Say = Callable[[str], None]
"""Shows a line of progress."""

SERVED_FILES = (WEIGHTS, "config.json", "soup.json")
"""Files of soup/ that are copies of those in soups/<id>/."""


def verify_experiment(moment: Moment, store: Store, say: Say) -> list[str]:
    """All problems, one sentence each; empty if there are none."""
    state = moment.state
    problems = list(_verify_checkpoints(committed_checkpoints(state), store, say))
    served = state.served.soup if state.served is not None else None
    if served is None:
        say("no soup is served yet")
        return problems
    wrong = [*_verify_served(state.soups[served], store), *_rebuild(moment, store, served)]
    if not wrong:
        say(f"{SERVED}/ is {served}, and blending its mix again gives the same bytes")
    return [*problems, *wrong]


def committed_checkpoints(state: State) -> tuple[Checkpoint, ...]:
    """Bases, checkpoints of runs and soups that are in the ledger and were not retired."""
    runs = (event.checkpoint for run in state.runs.values() for event in run.checkpoints)
    return (*state.bases.values(), *runs, *state.soups.values())


def _verify_checkpoints(
    checkpoints: tuple[Checkpoint, ...], store: Store, say: Say
) -> Iterator[str]:
    gib = sum(checkpoint.num_bytes for checkpoint in checkpoints) / 2**30
    say(f"hashing {len(checkpoints)} checkpoints, {gib:.2f} GiB")
    for done, checkpoint in enumerate(checkpoints, start=1):
        problem = _verify_checkpoint(checkpoint, store)
        say(f"[{done}/{len(checkpoints)}] {checkpoint.id}: {problem or 'ok'}")
        if problem is not None:
            yield problem


def _verify_checkpoint(checkpoint: Checkpoint, store: Store) -> str | None:
    """The first difference of files, manifest and ledger. None: they agree."""
    try:
        manifest.verify_files(store, checkpoint.id)
    except (CorruptFile, FileNotFoundError) as error:
        return str(error)
    stored = manifest.read_manifest(store, checkpoint.id)
    if stored is None or stored.checkpoint != checkpoint:
        return f"the manifest of {checkpoint.id} in {store} differs from the ledger"
    return None


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
