"""The verb `predict`: labels for new images, with a progress bar."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from orchestrator.driver.inventory import announced_files
from orchestrator.driver.ledger import Ledger
from orchestrator.state.reducers import fold
from workers.errors import UserError
from workers.storage.store import CorruptFile, Store

if TYPE_CHECKING:
    from workers.serving.predict import Answers


def label_images(
    model: Path, images: Path, out: Path, store: Store | None, ensemble: str | None
) -> str:
    """Write the CSV file, and return a sentence about it. `store` is that of the ensemble."""
    from workers.serving import predict

    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: its folder does not exist; make it, or write elsewhere")
    if out.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        seen = "is a folder" if out.is_dir() else "is in a folder without write permission"
        raise UserError(f"--out {out} {seen}; give the CSV file to write")
    files = predict.images_below(images)
    members = 1
    if store is not None:
        announced = announced_files(fold(Ledger(store).replay()))
        store.expect({path: file.sha256 for path, file in announced})
    if store is not None and ensemble is not None:
        members = _num_members(store, ensemble)
    with _progress() as bar:
        task = bar.add_task("predict", total=len(files) * members)

        def on_image() -> None:
            bar.advance(task)

        if store is not None and ensemble is not None:
            answers = _by_ensemble(store, ensemble, files, on_image)
        else:
            answers = predict.by_model(model, files, on_image)
    broken = predict.write_csv(answers, files, images, out)
    summary = f"{out}: {len(files) - broken} of {len(files)} images labelled"
    return f"{summary}; {broken} do not decode and have no label" if broken else summary


def _num_members(store: Store, ensemble: str) -> int:
    from workers.serving import predict

    try:
        return len(predict.open_ensemble(store, ensemble)[0].members)
    except CorruptFile as error:
        raise UserError(f"{error}; repeat soupfleet run, which makes the ensemble again") from error


def _by_ensemble(
    store: Store, ensemble: str, files: list[Path], on_image: Callable[[], object]
) -> "Answers":
    from workers.serving import predict

    try:
        return predict.by_ensemble(store, ensemble, files, on_image)
    except (CorruptFile, FileNotFoundError) as error:
        raise UserError(
            f"ensemble {ensemble} of {store} is incomplete ({error}); "
            f"soupfleet verify {store} lists all missing files"
        ) from error


def _progress() -> Progress:
    """A progress bar on stderr, so that scripts can read stdout."""
    columns = BarColumn(), MofNCompleteColumn(), "images", TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))
