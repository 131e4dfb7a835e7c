"""An experiment that runs to its end in seconds, in this process: noise, and a tiny network."""

from pathlib import Path

import torch

from orchestrator import config
from orchestrator.commands import run
from orchestrator.commands.run import Options, Outcome
from orchestrator.config import Experiment
from orchestrator.driver.ledger import Ledger
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.state.reducers import fold
from orchestrator.state.state import State
from tests.image_folders import write_classes
from workers.storage.store import Store

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
    outcome = run.run(experiment, Options(fleet="local", plain=True))
    return config.uri(experiment), outcome


def replayed(uri: str) -> tuple[ExpandedExperiment, State, Store]:
    store = Store(uri)
    experiment = run.read_experiment(store)
    assert experiment is not None
    return run.planned(experiment), fold(Ledger(store).replay()), store
