"""Files that are not what was written: what the state forgets, so that orders make them again.

checkpoint of a run   trained again from an older one
soup                  blended again
ensembles, analysis   compared and analysed again
splits, base, predictions   kept in `State.damaged` until an event says they were made again
"""

from orchestrator.state.checkpoint_reducers import drop_corrupt, rewind_before
from orchestrator.state.state import State
from workers.storage.layout import ANALYSIS, SPLITS, predictions_dir
from workers.types import (
    BaseOrder,
    Damaged,
    FilesEvent,
    MergeOpened,
    PreflightOrder,
    Retired,
)


def damaged(state: State, event: Damaged) -> None:
    if event.checkpoint is None:
        return drop_file(state, event.path)
    # The merged weights that a run of sync rounds continued from may be deleted.
    if not any(_is_sync_round(merge.opened) for merge in state.merges.values()):
        rewind_before(state.runs, event.checkpoint)
    drop_checkpoint(state, event.checkpoint)


def _is_sync_round(opened: MergeOpened) -> bool:
    return not opened.is_final and not opened.observe


def drop_checkpoint(state: State, corrupt: str) -> None:
    """Without a corrupt soup, the next order that needs it is preceded by a new blend."""
    drop_corrupt(state.runs, corrupt)
    state.soups = {name: soup for name, soup in state.soups.items() if soup.id != corrupt}
    state.corrupt.add(corrupt)


def drop_file(state: State, path: str) -> None:
    if path.startswith("ensembles/"):
        state.compared, state.analysed = {}, None
    elif path == ANALYSIS:
        state.analysed = None
    else:
        state.damaged.add(path)


def announced(state: State, event: FilesEvent) -> None:
    """The files are there, perhaps again."""
    for path, file in event.files.items():
        state.files.setdefault(folder_of(path), {})[path] = file
    state.damaged -= event.files.keys()


def splits_made(state: State) -> None:
    state.damaged.discard(SPLITS)


def base_made(state: State, name: str) -> None:
    state.damaged = {path for path in state.damaged if base_of(path) != name}


def retired(state: State, event: Retired) -> None:
    """Predictions are deleted together with their checkpoint."""
    for checkpoint in event.checkpoints:
        folder = predictions_dir(checkpoint)
        state.files.pop(folder, None)
        state.damaged = {path for path in state.damaged if folder_of(path) != folder}


def opened(state: State) -> None:
    """Every driver looks at the store anew: the user may have restored what is damaged."""
    state.damaged = set()
    if state.preflight is None:
        return
    for order in (PreflightOrder.id_of(), *map(BaseOrder.id_of, state.bases)):
        state.gave_up.pop(order, None)


def folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def base_of(path: str) -> str | None:
    """Name of the base whose file this is. None: it is another file."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "base" else None
