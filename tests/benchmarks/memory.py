"""Peak of anonymous memory of this process: memory that is not backed by a file."""

import os
import threading


class PeakAnonymous:
    """Context manager that samples anonymous memory; `grown` is the peak above the start in bytes.

    Mapped checkpoints and images are not included.
    """

    def __enter__(self) -> "PeakAnonymous":
        self._start = self._peak = _anonymous_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._peak = max(self._peak, _anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.grown = self._peak - self._start


def _anonymous_bytes() -> int:
    with open(f"/proc/{os.getpid()}/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["RssAnon"].split()[0]) * 1024
