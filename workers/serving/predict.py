"""Predictions: labels for new images, by a served model or by an ensemble.

    image files -> ServedModel, one per member -> logits -> label, confidence -> CSV

Members of an ensemble are opened from the store like served folders, with the config.json of their
base.
"""

import csv
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workers import types
from workers.data.sources import EXTENSIONS, image_files
from workers.errors import UserError
from workers.scoring import ensembles, stacking
from workers.scoring.metrics import log_softmax, predictions
from workers.serving.served_model import ServedModel
from workers.storage import local_disk
from workers.storage.layout import WEIGHTS, checkpoint_dir
from workers.storage.manifest import read_manifest
from workers.storage.store import CorruptFile, Store
from workers.text import csv_cell

OnImage = Callable[[], object]
"""Called after every image of every member."""


class Answers(NamedTuple):
    labels: tuple[str, ...]
    """Labels of the model, in the order of its outputs."""
    logits: np.ndarray
    """(N, C). A row of NaN for a file that does not decode."""


def images_below(path: Path) -> list[Path]:
    """The image files below a folder, or the one file. Raises UserError if there are none."""
    if path.is_file():
        return [path]
    files = image_files(path) if path.is_dir() else []
    if not files:
        fault = f"holds no images ({', '.join(EXTENSIONS)})" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {fault}; give an image, or a folder of images")
    return files


def by_model(model_dir: Path, files: Sequence[Path], on_image: OnImage = lambda: None) -> Answers:
    """The outputs of a served model."""
    served = ServedModel(model_dir)
    return Answers(served.labels, served.logits(files, on_image))


def by_ensemble(
    store: Store, ensemble_id: str, files: Sequence[Path], on_image: OnImage = lambda: None
) -> Answers:
    """The outputs of an ensemble. One member is in memory at a time and reads all images."""
    ensemble, stacker = open_ensemble(store, ensemble_id)
    groups = ensemble.groups or (ensemble.members,)
    blocks: list[np.ndarray] = []
    labels: tuple[str, ...] = ()
    for group in groups:
        total = np.zeros((len(files), 1))
        for member in group:
            with _member_folder(store, member) as folder:
                labels, logits = by_model(folder, files, on_image)
            total = total + logits
        blocks.append(total / len(group))
    return Answers(labels, stacker(blocks) if stacker is not None else blocks[0])


def open_ensemble(
    store: Store, ensemble_id: str
) -> tuple[types.EnsembleResult, stacking.Stacker | None]:
    """An ensemble of the store. Raises UserError, with the names of all, if there is none."""
    try:
        return ensembles.read_ensemble(store, ensemble_id)
    except FileNotFoundError as error:
        names = sorted({path.split("/")[1] for path in store.list("ensembles")})
        raise UserError(
            f"{store} has no ensemble {ensemble_id!r}; there are {', '.join(names) or 'none'}"
        ) from error


def write_csv(answers: Answers, files: Sequence[Path], root: Path, out: Path) -> int:
    """Write columns image (relative to the folder `root`), label and confidence.

    An image that does not decode has an empty label and confidence. Returns how many these are.
    """
    chosen = predictions(answers.logits)
    probabilities = np.exp(log_softmax(answers.logits))
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["image", "label", "confidence"])
    for path, choice, row in zip(files, chosen, probabilities, strict=True):
        name = path.relative_to(root).as_posix() if root.is_dir() else path.name
        answer = (answers.labels[choice], f"{row[choice]:.6f}") if choice >= 0 else ("", "")
        table.writerow(map(csv_cell, (name, *answer)))
    with local_disk.replacing(out, durable=False) as file:
        file.write(text.getvalue().encode())
    return int((chosen < 0).sum())


@contextmanager
def _member_folder(store: Store, member: str) -> Iterator[Path]:
    """A temporary folder of a run's checkpoint that plain timm loads.

    Raises CorruptFile for a member that is missing or differs from its manifest.
    """
    manifest = read_manifest(store, member)
    if manifest is None or manifest.base is None:
        raise CorruptFile(f"the ensemble's member {member} is not in {store}")
    weights = store.fetch(f"{checkpoint_dir(member)}/{WEIGHTS}", manifest.files[WEIGHTS].sha256)
    config = store.read(f"{checkpoint_dir(manifest.base)}/config.json")
    with tempfile.TemporaryDirectory(prefix="soupfleet-") as name:
        folder = Path(name)
        (folder / "config.json").write_bytes(config)
        (folder / WEIGHTS).symlink_to(weights.absolute())
        yield folder
