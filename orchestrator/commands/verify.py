"""Verify: is everything in the store what was written, and is the soup what it says it is?

ledger -> every checkpoint that counts -> manifest -> hash of every file
served soup/ == soups/<id>/ == made again from its mix, BatchNorm statistics included
"""

from collections.abc import Callable, Iterator
from typing import Literal

from orchestrator import config
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.schedule.ingredients import checkpoint_named
from orchestrator.state.state import State
from workers.context import cuda_is_available
from workers.errors import UserError
from workers.storage import manifest
from workers.storage.layout import SERVED, WEIGHTS, checkpoint_dir
from workers.storage.store import CorruptFile, Store
from workers.types import Checkpoint

Say = Callable[[str], None]

SERVED_FILES = (WEIGHTS, "config.json", "soup.json")
"""Files of soup/ that are copies; its README is written beside them."""


def verify_experiment(
    program: ExpandedExperiment, state: State, store: Store, say: Say
) -> list[str]:
    """What is wrong, a sentence each; nothing if all is well. `say` gets lines of progress."""
    problems = list(_verify_checkpoints(counted(state), store, say))
    served = state.served.soup if state.served is not None else None
    if served is None:
        say("no soup is served yet")
        return problems
    found = [*_verify_served(state.soups[served], store), *_rebuild(program, state, store, served)]
    if not found:
        say(f"{SERVED}/ is {served}, and made again from its mix it has the same bytes")
    return [*problems, *found]


def counted(state: State) -> tuple[Checkpoint, ...]:
    """Bases, checkpoints of runs, soups: what the ledger adopted and has not retired."""
    of_runs = (event.checkpoint for run in state.runs.values() for event in run.checkpoints)
    return (*state.bases.values(), *of_runs, *state.soups.values())


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
    """Files against the manifest, and the manifest against the ledger."""
    try:
        manifest.verify_files(store, checkpoint.id)
    except (CorruptFile, FileNotFoundError) as error:
        return str(error)
    known = manifest.read_manifest(store, checkpoint.id)
    if known is None or known.checkpoint != checkpoint:
        return f"the manifest of {checkpoint.id} in {store} is not the one the ledger speaks of"
    return None


def _verify_served(soup: Checkpoint, store: Store) -> Iterator[str]:
    """The folder that is served is a copy of the soup."""
    known = manifest.read_manifest(store, soup.id)
    facts = known.files if known is not None else {}
    for name in SERVED_FILES:
        if name not in facts:
            yield f"{checkpoint_dir(soup.id)} in {store} has no {name} to compare {SERVED}/ with"
        elif not store.exists(f"{SERVED}/{name}"):
            yield f"{SERVED}/{name} in {store} is missing"
        elif store.hash(f"{SERVED}/{name}") != facts[name].sha256:
            yield f"{SERVED}/{name} in {store} has other bytes than {soup.id}"


def _rebuild(program: ExpandedExperiment, state: State, store: Store, served: str) -> Iterator[str]:
    """The same soup, made again from the members that lie in the store."""
    from workers.context import WorkerContext
    from workers.merging.write_soup import SOUP, SoupFile, rebuild

    soup = state.soups[served]
    try:
        made = SoupFile.model_validate_json(store.read(f"{checkpoint_dir(soup.id)}/{SOUP}"))
        members = tuple(checkpoint_named(state, name) for name in made.mix.names)
        # The experiment may have been moved since: its files are where they were found.
        setting = config.worker_config(program.experiment, _device(program))
        setting = setting.model_copy(update={"uri": store.uri, "ranks": 1})
        sha256 = rebuild(made, members, WorkerContext(setting))
    except (OSError, ValueError, KeyError) as error:
        yield f"{served} cannot be made again from its mix: {error}"
        return
    if sha256 != soup.sha256:
        statistics = ", its BatchNorm statistics included," * (made.cohort.batchnorm == "recompute")
        yield (
            f"{served}, made again from its mix{statistics} on this {setting.device}, has sha256 "
            f"{sha256[:12]}... instead of {soup.sha256[:12]}...; on the kind of machine that made "
            "it, it should be the same"
        )


def _device(program: ExpandedExperiment) -> Literal["cpu", "cuda"]:
    asked = program.experiment.fleet.device
    if asked == "auto":
        return "cuda" if cuda_is_available() else "cpu"
    if asked == "cuda" and not cuda_is_available():
        raise UserError("fleet.device is cuda, but torch finds no GPU here; verify where there is")
    return asked
