"""Output ensembles, which soups are compared with: the logits of many models, combined.

    soft voting   the softmax of the mean logits (Wortsman et al., 2022, section 4)
    stacking      a linear classifier on the concatenated logits, see `workers.scoring.stacking`

They are computed from cached predictions; no image is read.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError

from workers.scoring.stacking import Stacker, fit
from workers.storage.layout import ensemble_dir
from workers.storage.predictions import read_predictions
from workers.storage.store import CorruptFile, Store
from workers.types import SELECTION, EnsembleResult, FileInfo

SOFT_VOTING = "soft_voting"
STACKING = "stacking"
OUT_OF_FOLD = "out of fold"
"""`fitted_on` of a stacked classifier that was fitted on images its members did not train on."""
STACKER = "stacker.safetensors"

Groups = Sequence[Sequence[str]]
Predictions = tuple[list[str], np.ndarray, np.ndarray]
"""(keys, labels int64 (N,), logits float64 (N, C))."""


def soft_vote(store: Store, members: Sequence[str], split: str) -> Predictions:
    """The mean of the members' logits, with one member's predictions in memory at a time."""
    keys, labels, first = read_predictions(store, members[0], split)
    total = first.astype(np.float64)
    for member in members[1:]:
        own_keys, _, logits = read_predictions(store, member, split)
        assert own_keys == keys, f"predictions of {member} on {split} are of other images"
        total += logits
    return keys, labels, total / len(members)


def fit_stacker(store: Store, groups: Groups, folds: Mapping[str, int]) -> Stacker:
    """A stacker fitted out of fold if the members have folds, else on the selection split."""
    predictions = [_to_fit_on(store, group, folds) for group in groups]
    keys, labels, _ = predictions[0]
    same_images = all(own_keys == keys for own_keys, _, _ in predictions)
    assert same_images, "groups were not trained on the same folds"
    return fit([logits for _, _, logits in predictions], labels)


def stack(store: Store, stacker: Stacker, groups: Groups, split: str) -> Predictions:
    """Keys, labels and the stacked classifier's logits on a split."""
    votes = [soft_vote(store, group, split) for group in groups]
    keys, labels, _ = votes[0]
    return keys, labels, stacker([logits for _, _, logits in votes])


def write_ensemble(
    store: Store, ensemble: EnsembleResult, stacker: Stacker | None = None
) -> dict[str, FileInfo]:
    """Write the ensemble; returns the files by path."""
    folder = ensemble_dir(ensemble.id)
    contents = {f"{folder}/ensemble.json": (ensemble.model_dump_json(indent=2) + "\n").encode()}
    if stacker is not None:
        contents[f"{folder}/{STACKER}"] = stacker.to_bytes()
    for path, content in contents.items():
        store.write(path, content)
    return {
        path: FileInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path, content in contents.items()
    }


def read_ensemble(store: Store, ensemble_id: str) -> tuple[EnsembleResult, Stacker | None]:
    """The ensemble and its stacker, if it has one.

    Raises:
        FileNotFoundError: there is no such ensemble.
        CorruptFile: its files are not what was written.
    """
    folder = ensemble_dir(ensemble_id)
    content = store.read(f"{folder}/ensemble.json")
    try:
        ensemble = EnsembleResult.model_validate_json(content)
    except ValidationError as error:
        raise CorruptFile(f"{folder}/ensemble.json in {store} is not an ensemble") from error
    if ensemble.kind != STACKING:
        return ensemble, None
    return ensemble, _read_stacker(store, f"{folder}/{STACKER}")


def _read_stacker(store: Store, path: str) -> Stacker:
    try:
        return Stacker.from_bytes(store.read(path))
    except (SafetensorError, KeyError) as error:
        raise CorruptFile(f"{path} in {store} is not a stacked classifier") from error


def _to_fit_on(store: Store, group: Sequence[str], folds: Mapping[str, int]) -> Predictions:
    if not folds:
        return soft_vote(store, group, SELECTION)
    parts = (read_predictions(store, member, f"fold:{folds[member]}") for member in group)
    return _in_key_order(parts)


def _in_key_order(parts: Iterable[Predictions]) -> Predictions:
    """The folds of one setting, joined and sorted by key: the same order for every setting."""
    keys, labels, logits = (list(column) for column in zip(*parts, strict=True))
    flat = np.array([key for part in keys for key in part])
    order = np.argsort(flat, kind="stable")
    rows = np.concatenate(logits).astype(np.float64)
    return flat[order].tolist(), np.concatenate(labels)[order], rows[order]
