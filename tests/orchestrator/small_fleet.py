"""An experiment on noise with a tiny network, which ends within seconds in this process."""

from pathlib import Path

import torch

from orchestrator import config
from orchestrator.commands import run
from orchestrator.commands.run import Options, RunOutcome
from orchestrator.config import Experiment
from orchestrator.driver.contents import read_experiment
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
    """Two classes of 24 images each below `folder`, which also holds the storage."""
    torch.set_num_threads(1)
    file, images = folder / "small.yaml", folder / "images"
    file.write_text(TEXT)
    if not images.exists():
        write_classes(images, {"cat": 24, "dog": 24})
    return config.load(file, [f"data.root={images}", f"storage={folder / 'runs'}", *overrides])


def run_small(folder: Path, *overrides: str, extend: bool = False) -> tuple[str, RunOutcome]:
    """URI and outcome of a run with a local fleet."""
    experiment = small_experiment(folder, *overrides)
    outcome = run.run_experiment(experiment, Options(fleet="local", plain=True, extend=extend))
    return config.uri(experiment), outcome


def replayed(uri: str) -> tuple[ExpandedExperiment, State, Store]:
    """What a reader of the store knows."""
    store = Store(uri)
    experiment = read_experiment(store)
    assert experiment is not None
    return run.planned(experiment), fold(Ledger(store).replay()), store
