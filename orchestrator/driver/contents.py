"""The contents of a store before a driver begins: an experiment, nothing yet, or parts of one.

    config.yaml, and a ledger with its beginning    an experiment: it continues
    neither, nor files of runs, bases or soups      nothing yet: a new experiment may begin
    anything else                                   refused, since what is lost cannot be told

Nothing is ever cleared that training has paid for.
"""

from orchestrator import config
from orchestrator.config import Experiment
from orchestrator.driver.ledger import Ledger
from orchestrator.state.reducers import fold
from orchestrator.state.state import State
from workers.errors import UserError, first_line
from workers.storage.layout import CONFIG, FOLDERS, LEASE, LEDGER, MANIFEST, SERVED, STORE_ENTRIES
from workers.storage.store import CorruptFile, Store
from workers.types import run_id_of

PAID = ("runs", "base", "soups", SERVED)
"""Folders that hold the results of training."""

STORE_FOLDERS = frozenset([*FOLDERS, LEDGER, SERVED])
"""Those of STORE_ENTRIES that are folders."""

REMEDY = "restore it from a copy, or start another experiment with --name; nothing was changed"


def read_experiment(store: Store) -> Experiment | None:
    """The experiment in the store. None: there is none.

    Raises:
        UserError: its config.yaml is unreadable, or missing beside other parts of an experiment.
    """
    text = _config_text(store)
    if text is None:
        refuse_parts(store, f"no {CONFIG}")
        return None
    return config.read(text, f"{CONFIG} in {store}")


def _config_text(store: Store) -> str | None:
    """The text of config.yaml. None: it is missing."""
    try:
        return store.read(CONFIG).decode() if store.is_file(CONFIG) else None
    except UnicodeDecodeError as error:
        raise UserError(f"{CONFIG} in {store} is not UTF-8 text ({error}); {REMEDY}") from error
    except OSError as error:
        raise UserError(
            f"storage {store} does not answer ({first_line(error)}); check its name, the "
            "credentials and the network"
        ) from error


def read_state(store: Store) -> State:
    """The state of the experiment in the store.

    Raises:
        UserError: its ledger is damaged, or missing beside other parts of an experiment.
    """
    try:
        state = fold(Ledger(store).replay())
    except CorruptFile as error:
        raise UserError(f"{first_line(error)}; {REMEDY}") from error
    if state.preflight is None:
        refuse_parts(store, f"no {LEDGER}/ with its beginning")
    return state


def refuse_parts(store: Store, missing: str) -> None:
    """Refuse a store with results of training, of which it is unknown what they are."""
    part = next((path for folder in PAID for path in store.list(folder)), None)
    if part is not None:
        raise UserError(f"{store} contains {part}, but {missing}; {REMEDY}")


def refuse_lost_events(store: Store, state: State) -> None:
    """Refuse a ledger that has lost its end: an attempt is in the ledger before it writes."""
    for path in store.sizes("runs"):
        owner, _, name = path.removeprefix("runs/").partition("/checkpoints/")
        attempt = name.removesuffix(f"/{MANIFEST}").rpartition("-")[2]
        if not path.endswith(f"/{MANIFEST}") or not attempt.isdecimal():
            continue
        if int(attempt) > state.attempts.get(run_id_of(owner), 0):
            raise UserError(
                f"{path} in {store} is of attempt {attempt}, which the ledger does not contain, so "
                f"the last files of {LEDGER}/ are missing; {REMEDY}"
            )


def refuse_other_contents(store: Store, is_new: bool) -> None:
    """Refuse other files where a new experiment would begin, and folders in the place of files."""
    for name, is_file in sorted(store.entries().items()):
        if is_new and name not in STORE_ENTRIES:
            raise UserError(
                f"{store} is not an experiment and contains {name!r}; give the experiment a "
                "folder of its own with --name or --storage"
            )
        if name in STORE_ENTRIES and is_file == (name in STORE_FOLDERS):
            seen, expected = ("file", "folder") if is_file else ("folder", "file")
            raise UserError(
                f"{name} in {store} is a {seen}, where a {expected} of this name belongs; remove "
                "or rename it"
            )


def clear(store: Store) -> None:
    """Delete all files of an experiment that did not pass preflight, except the lease."""
    refuse_parts(store, "no beginning")
    for name in STORE_ENTRIES - {LEASE}:
        store.delete(name)
