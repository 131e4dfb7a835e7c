"""An experiment that runs to its end in seconds, in this process: noise, and a tiny network."""

from pathlib import Path

import torch

from orchestrator import config, session
from orchestrator.config import Experiment
from orchestrator.folds import fold
from orchestrator.ledger import Ledger
from orchestrator.program import Program
from orchestrator.session import Options, Outcome
from orchestrator.state import State
from tests.workers.pictures import write_classes
from workers.storage import Store

TEXT = """
name: small
data: {image_size: 32}
model: {name: test_resnet}
base: {trunk_epochs: 1}
train: {epochs: 2, batch_size: 8, lr: 0.003}
soup: {batchnorm_samples: 16}
sweep: {seeds: 3}
"""


def small_experiment(folder: Path, *overrides: str) -> Experiment:
    """Two classes of 24 pictures each below `folder`; the storage is there, too."""
    torch.set_num_threads(1)
    file, images = folder / "small.yaml", folder / "images"
    file.write_text(TEXT)
    if not images.exists():
        write_classes(images, {"cat": 24, "dog": 24})
    return config.load(file, [f"data.root={images}", f"storage={folder / 'runs'}", *overrides])


def run_small(folder: Path, *overrides: str) -> tuple[str, Outcome]:
    """(uri, outcome) of a run with a local fleet."""
    experiment = small_experiment(folder, *overrides)
    outcome = session.run(experiment, Options(fleet="local", plain=True))
    return config.uri(experiment), outcome


def replayed(uri: str) -> tuple[Program, State, Store]:
    store = Store(uri)
    experiment = session.read_experiment(store)
    assert experiment is not None
    return session.planned(experiment), fold(Ledger(store).replay()), store
