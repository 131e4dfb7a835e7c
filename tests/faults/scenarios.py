"""Scenarios of a soak in one process per driver: kills, freezes, failing disks, changed files."""

import os
import random
import shutil
import signal
import threading
from pathlib import Path

from tests.faults import tiny_experiment
from tests.faults.soak import Outcome, Soak, driver_run

REFUSALS = ("ENOSPC", "EROFS", "EIO", "EDQUOT")

BELIEVED = ("base/", "runs/", "soups/", "soup/", "predictions/", "ensembles/", "ledger/")
BELIEVED_FILES = ("config.yaml", "splits.parquet", "analysis.json", "results.json")
UNREAD = ("tensorboard/", "logs/", "params.json", "summary.csv")
"""Parts of the paths of files below `BELIEVED` that are for people only."""


def kill_drivers(soak: Soak, rng: random.Random) -> Outcome:
    """Driver after driver is killed after a few ledger writes, until one reaches the end."""
    folder, num_kills = soak.folder(), 0
    while (status := soak.run(folder, kill_after=rng.randint(1, 14))).was_killed:
        num_kills += 1
    return soak.judge(folder, status.code, num_kills)


def freeze_driver(soak: Soak, rng: random.Random) -> Outcome:
    """A driver freezes, another takes over and ends, then the first one thaws."""
    folder = soak.folder()
    pid = soak.server.start(driver_run(folder))
    wait_for_events(folder, rng.randrange(1, soak.num_writes - 2))
    os.kill(pid, signal.SIGSTOP)
    second = soak.other_server.run(driver_run(folder, "--take-over"))
    os.kill(pid, signal.SIGCONT)
    soak.server.wait()
    return soak.judge(folder, second.code, injected=1)


def fail_disk(soak: Soak, rng: random.Random) -> Outcome:
    """The disk refuses every write now and then; nobody repeats the command."""
    folder = soak.folder()
    failing = folder / "failing"
    fault = {"refuse": rng.choice(REFUSALS), "while": str(failing)}
    soak.server.start(driver_run(folder, faults=(fault,)))
    done = threading.Event()
    periods = [(rng.uniform(0.2, 3), rng.uniform(0.2, 6)) for _ in range(3)]
    trouble = threading.Thread(target=_fail_now_and_then, args=(failing, periods, done))
    trouble.start()
    status = soak.server.wait()
    done.set()
    trouble.join()
    return soak.judge(folder, status.code, injected=len(periods))


def _fail_now_and_then(
    failing: Path, periods: list[tuple[float, float]], done: threading.Event
) -> None:
    for pause_s, fail_s in periods:
        if done.wait(pause_s):
            return
        failing.touch()
        done.wait(fail_s)
        failing.unlink()


def change_finished(soak: Soak, rng: random.Random) -> Outcome:
    """A file of a finished store is changed: `verify` names it, `run` repairs or refuses it."""
    return _change(soak, soak.copy(soak.peaceful), rng, is_finished=True)


def change_interrupted(soak: Soak, rng: random.Random) -> Outcome:
    """A file of an interrupted store is changed, and the same command is given again."""
    folder = soak.folder()
    soak.run(folder, kill_after=rng.randrange(8, soak.num_writes - 1))
    return _change(soak, folder, rng, is_finished=False)


def _change(soak: Soak, folder: Path, rng: random.Random, is_finished: bool) -> Outcome:
    file = rng.choice(believed_files(store_root(folder)))
    original = file.read_bytes()
    harm(file, rng, believed_files(store_root(folder)))
    silent = 0
    if is_finished and (not file.exists() or file.read_bytes() != original):
        silent = int(soak.run(folder, verb="verify").code != 2)
    code = soak.run(folder).code
    if code == 2:  # it named the file; its owner restores it
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(original)
        code = soak.run(folder).code
    outcome = soak.judge(folder, code, injected=1)
    outcome.silent = silent
    return outcome


def store_root(folder: Path) -> Path:
    return folder / "runs" / "tiny"


def believed_files(root: Path) -> list[Path]:
    """The files of a store that the program reads again."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return [path for path in paths if _is_believed(path.relative_to(root).as_posix())]


def _is_believed(path: str) -> bool:
    if path in BELIEVED_FILES:
        return True
    return path.startswith(BELIEVED) and not any(part in path for part in UNREAD)


def harm(file: Path, rng: random.Random, others: list[Path]) -> None:
    """Flip a bit, cut, empty or delete a file, or exchange it for another one."""
    kind, data = rng.choice(("flip", "cut", "empty", "delete", "swap")), file.read_bytes()
    if kind == "flip" and data:
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
    elif kind == "cut":
        file.write_bytes(data[: rng.randrange(max(1, len(data)))])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "delete":
        file.unlink()
    else:
        alike = [other for other in others if other.suffix == file.suffix and other != file]
        shutil.copyfile(rng.choice(alike or others), file)


def wait_for_events(folder: Path, count: int) -> None:
    """Wait until the ledger has this many events."""
    tiny_experiment.wait_for(lambda: len(tiny_experiment.peek(store_root(folder))) >= count)
