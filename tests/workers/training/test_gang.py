"""Gangs: two ranks, two processes, one run, over gloo."""

import os
import socket
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import multiprocessing

from tests.workers.small_runs import (
    RESNET,
    checkpoints,
    last_step,
    make_base,
    make_run,
    make_setting,
)
from workers.context import WorkerContext
from workers.storage.manifest import read_manifest
from workers.training.train import train
from workers.types import AnyEvent, Checkpoint, RunSpec, TrainOrder, WorkerConfig

RANKS = 2


@dataclass
class RankResult:
    """The events of one rank for one order, and its state afterwards."""

    events: list[AnyEvent]
    loaded_checkpoint_id: str | None
    weights: dict[str, np.ndarray]
    history: list[float]
    """Scores of the epochs, as this rank knows them."""


def _run() -> RunSpec:
    """22 images in steps of 2 ranks x 2 micro-batches x 4: two steps, of which one is short."""
    options: dict[str, Any] = {"grad_accum_steps": 2, "drop_path": 0.2, "clip_grad": 1.0}
    return make_run("gang-plain", RESNET, **options)


def _featured() -> RunSpec:
    """Two phases of two steps, with features that all ranks share or only one has."""
    sections = [{"epoch": 0, "modules": "head"}, {"epoch": 1, "modules": "all"}]
    options: dict[str, Any] = {"sched": "plateau", "patience": 3, "model_ema_decay": 0.5}
    options |= {"checkpoint_every": "1 steps", "mixup": 0.4, "channels_last": True}
    return make_run("gang-featured", RESNET, grad_accum_steps=2, unfreeze=sections, **options)


def _rank(
    rank: int, config: WorkerConfig, base: Checkpoint, ports: list[int], answers: Any
) -> None:
    """One rank: order after order on one warm worker, each in a process group of its own."""
    torch.set_num_threads(1)
    worker, results = WorkerContext(config, rank=rank), {}

    def perform(title: str, run: RunSpec, start: Checkpoint, attempt: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports.pop())}
        order = TrainOrder(run=run, start=start, stop_step=last_step(run, RANKS))
        events = list(train(order, attempt, worker))
        state = {k: v.numpy().copy() for k, v in worker.model(run.model).state_dict().items()}
        history = worker.warm_state.position.history
        results[title] = RankResult(events, worker.loaded_checkpoint_id, state, list(history))

    perform("cold", _run(), base, 0)
    perform("warm", _run(), base, 1)
    worker.forget()
    half = read_manifest(worker.store, "gang-plain/00000002-0")
    assert half is not None
    perform("resumed", _run(), half.checkpoint, 2)
    perform("featured cold", _featured(), base, 0)
    for step in (2, 3):
        worker.forget()
        stored = read_manifest(worker.store, f"gang-featured/{step:08d}-0")
        assert stored is not None
        perform(f"featured resumed at {step}", _featured(), stored.checkpoint, step)
    worker.progress.interrupt = "node is drained" if rank == RANKS - 1 else None
    perform("interrupted", _run(), base, 3)
    answers.put((rank, results))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, RankResult]]:
    """rank -> order -> result. One pair of processes for all tests, because imports are slow."""
    config = make_setting(tmp_path_factory.mktemp("gang"), ranks=RANKS)
    base = make_base(config, RESNET)
    context = multiprocessing.get_context("spawn")
    answers, ports = context.Queue(), _free_ports(7)
    processes = [
        context.Process(target=_rank, args=(rank, config, base, ports, answers))
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    results = dict(answers.get(timeout=240) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return results


def _free_ports(num: int) -> list[int]:
    probes = [socket.socket() for _ in range(num)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def test_only_rank_zero_yields_events_and_writes(
    ranks: dict[int, dict[str, RankResult]],
) -> None:
    kinds = [event.kind for event in ranks[0]["cold"].events]
    assert kinds[0] == "started" and kinds[-1] == "trained"
    assert kinds.count("evaluated") == kinds.count("checkpoint") == 2
    assert ranks[1]["cold"].events == []


def test_ranks_end_with_equal_weights_under_the_networks_own_names(
    ranks: dict[int, dict[str, RankResult]],
) -> None:
    one, other = (ranks[rank]["cold"] for rank in range(RANKS))
    assert one.loaded_checkpoint_id == other.loaded_checkpoint_id == checkpoints(one.events)[-1].id
    assert not any(key.startswith("module.") for key in one.weights)
    for key, values in one.weights.items():
        assert (values == other.weights[key]).all(), key


@pytest.mark.parametrize("again", ["warm", "resumed"])
def test_a_gang_writes_the_same_bytes_again(
    ranks: dict[int, dict[str, RankResult]], again: str
) -> None:
    first, second = (
        ranks[0]["cold"].events,
        ranks[0][again].events,
    )
    assert checkpoints(first)[-1].sha256 == checkpoints(second)[-1].sha256
    last_loss = [[e.loss for e in es if e.kind == "evaluated"][-1] for es in (first, second)]
    assert last_loss[0] == last_loss[1]


@pytest.mark.parametrize("step", [2, 3])
def test_phases_and_averages_of_a_gang_are_resumed(
    ranks: dict[int, dict[str, RankResult]], step: int
) -> None:
    cold, resumed = (ranks[0][f"featured {how}"].events for how in ("cold", f"resumed at {step}"))
    shas = [{c.name: c.sha256 for c in checkpoints(events)} for events in (cold, resumed)]
    assert len(shas[0]) == 8 and shas[1].items() <= shas[0].items()


def test_all_ranks_know_the_scores(ranks: dict[int, dict[str, RankResult]]) -> None:
    one, other = (ranks[rank]["featured cold"] for rank in range(RANKS))
    scores = [event.score.top1 for event in one.events if event.kind == "evaluated"]
    assert one.history == other.history == scores


def test_one_rank_asked_to_stop_stops_the_gang_after_a_checkpoint(
    ranks: dict[int, dict[str, RankResult]],
) -> None:
    events = ranks[0]["interrupted"].events
    assert events[-1].kind == "interrupted"
    assert [checkpoint.step for checkpoint in checkpoints(events)] == [1]
