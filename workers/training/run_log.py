"""A run's log and TensorBoard scalars, written locally and put whole into the store.

    log, scalars -> temporary folder -> put -> runs/<id>/{params.json, logs/, tensorboard/}

An object store cannot append, so every checkpoint writes the whole files again.
"""

import logging
import tempfile
import time
from pathlib import Path

from workers.storage.layout import run_file
from workers.storage.store import Store
from workers.types import RunSpec

logger = logging.getLogger(__name__)


class RunLog:
    """The log files of one attempt. `put` may be called from another thread than the rest."""

    def __init__(self, store: Store, run: RunSpec, attempt: int, step: int) -> None:
        # Imported late: it takes a second, which only training ranks should pay.
        from torch.utils.tensorboard import SummaryWriter

        self._store, self._run, self._attempt = store, run, attempt
        self._folder = tempfile.TemporaryDirectory(prefix=f"run-{run.id}-")
        self._path = Path(self._folder.name) / f"attempt-{attempt}.log"
        self._path.write_bytes(self._earlier())
        # Hides what an interrupted attempt wrote beyond `step`.
        self._board = SummaryWriter(f"{self._folder.name}/tensorboard", purge_step=step + 1)

    def log(self, sentence: str) -> None:
        """Append a line with date and time in UTC."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{stamp}  {sentence}\n")
        logger.debug("run %s: %s", self._run.id, sentence)

    def scalars(self, step: int, **values: float | None) -> None:
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name.replace("__", "/"), value, step)

    def put(self) -> None:
        """Write all files into the store."""
        self._board.flush()
        self._store.write(
            run_file(self._run.id, "params.json"), self._run.model_dump_json(indent=2).encode()
        )
        self._store.write(self._log_file, self._path.read_bytes())
        for file in Path(self._board.log_dir).iterdir():
            self._store.write(run_file(self._run.id, "tensorboard", file.name), file.read_bytes())

    def close(self) -> None:
        self.put()
        self._board.close()
        self._folder.cleanup()

    @property
    def _log_file(self) -> str:
        return run_file(self._run.id, "logs", f"attempt-{self._attempt}.log")

    def _earlier(self) -> bytes:
        """The log of earlier orders of this attempt."""
        return self._store.read(self._log_file) if self._store.exists(self._log_file) else b""
