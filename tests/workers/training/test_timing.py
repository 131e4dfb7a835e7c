"""Timing a few steps of a run with all features that make its steps slow."""

from pathlib import Path

import torch

from tests.workers.small_runs import RESNET, make_run, make_setting
from workers.context import WorkerContext
from workers.training.timing import time_run


def test_every_phase_of_a_run_is_timed(tmp_path: Path) -> None:
    sections = [{"epoch": 0, "modules": "head"}, {"epoch": 1, "modules": "all"}]
    run = make_run(
        model=RESNET,
        unfreeze=sections,
        mixup=0.2,
        model_ema_decay=0.9,
        channels_last=True,
        class_weights="balanced",
    ).model_copy(update={"fold": 1})
    worker = WorkerContext(make_setting(tmp_path, folds=2))
    pace = time_run(run, worker)
    assert pace.num_steps >= 2 and pace.step_s > 0 and pace.score_image_s > 0
    assert torch.get_num_threads() == 1 and worker.loaded_checkpoint_id is None
