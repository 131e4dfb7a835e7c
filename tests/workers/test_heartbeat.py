"""Progress: what counts as a sign of life, and how long silence is allowed."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.workers.small_runs import RESNET, make_base, make_run, make_setting, perform
from workers.context import WorkerContext
from workers.heartbeat import Progress
from workers.storage.store import Bytes, Store
from workers.training import train
from workers.training.recorder import CONFIRM_LIMIT_S


def silenced(seconds: float) -> Progress:
    progress = Progress()
    progress.begin("order")
    progress.touched_at -= seconds
    return progress


def test_bytes_are_a_sign_of_life() -> None:
    progress = silenced(60)
    assert progress.heartbeat("slot").silent_s >= 60
    progress.beat()
    assert progress.heartbeat("slot").silent_s < 10


def test_silent_work_has_a_limit_of_its_own() -> None:
    progress = silenced(60)
    with progress.busy("outer", 100), progress.busy("inner", 1000):
        seen = progress.heartbeat("slot")
        assert (seen.busy, seen.limit_s) == ("inner", 1000) and seen.silent_s < 10
    progress.touched_at -= 60
    seen = progress.heartbeat("slot")
    assert (seen.busy, seen.limit_s) == (None, 0.0) and seen.silent_s >= 60


def test_an_order_begins_without_the_limit_of_the_one_before() -> None:
    progress = Progress()
    with pytest.raises(RuntimeError), progress.busy("work", 1000):
        raise RuntimeError
    assert progress.silence == (None, 0.0)
    progress.silence = ("left by a killed generator", 1000)
    progress.begin("next")
    assert progress.heartbeat("slot").limit_s == 0.0


class SlowSink:
    """Takes its time for every write, and for the confirmation at the end."""

    def __init__(self, sink: Any, progress: Progress, seen: list[Any]) -> None:
        self._sink, self._progress, self._seen = sink, progress, seen

    def write(self, data: Bytes, /) -> None:
        self._seen.append(self._progress.silence)
        time.sleep(0.02)
        self._sink.write(data)


def test_waiting_for_a_slow_store_is_no_hang(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training is over long before its checkpoint is written: every block is a sign of life, and
    the wait for the store has its own limit."""
    config = make_setting(tmp_path)
    start, run = make_base(config, RESNET), make_run(model=RESNET, epochs=1)
    worker, seen = WorkerContext(config), []
    beats: list[float] = []
    worker.store.on_bytes = lambda: beats.append(time.monotonic())
    writing = worker.store.writing

    def slowly(path: str) -> Any:
        sink = writing(path)
        enter = type(sink).__enter__
        slow = SimpleNamespace(sink=sink)

        class Slow:
            def __enter__(self) -> SlowSink:
                return SlowSink(enter(slow.sink), worker.progress, seen)

            def __exit__(self, *error: Any) -> Any:
                return slow.sink.__exit__(*error)

        return Slow()

    monkeypatch.setattr(worker.store, "writing", slowly)
    events = perform(worker, run, start)
    assert ("waiting for a checkpoint to be written", CONFIRM_LIMIT_S) in seen
    assert len(beats) > len(seen)
    (checkpoint,) = [event for event in events if event.kind == "checkpoint"]
    assert checkpoint.write_s is not None and checkpoint.write_s > 0.04


def test_reading_a_checkpoint_beats_per_tensor(tmp_path: Any) -> None:
    from workers.storage.checkpoints import open_weights

    config = make_setting(tmp_path)
    base = make_base(config, RESNET)
    beats: list[None] = []
    with open_weights(Store(config.uri, on_bytes=lambda: beats.append(None)), base) as weights:
        opened = len(beats)
        tensors = dict(weights)
    assert opened and len(beats) == opened + len(tensors)


def trained(spec: Any, ranks: int = 1) -> Any:
    worker = SimpleNamespace(progress=Progress(), config=SimpleNamespace(ranks=ranks))
    phase = SimpleNamespace(phase=SimpleNamespace(first=0))
    return SimpleNamespace(
        run=SimpleNamespace(train=spec), worker=worker, optimization=phase, compiled=set()
    )


def test_the_first_step_of_every_size_may_compile() -> None:
    t = trained(make_run(compile=True).train)
    whole, short = (train.Step(num, 1, iter(())) for num in (8, 3))
    silent = []
    for step in (whole, whole, short):
        with train._compiling(t, step):
            silent.append(t.worker.progress.silence[1])
    assert silent == [train.COMPILE_LIMIT_S, 0.0, train.COMPILE_LIMIT_S]
    with train._compiling(trained(make_run().train), whole):
        assert t.worker.progress.silence == (None, 0.0)


def test_a_rank_may_wait_for_the_cache_of_another_node() -> None:
    alone, gang = (trained(make_run().train, ranks) for ranks in (1, 2))
    with train._waiting_for_ranks(alone), train._waiting_for_ranks(gang):
        assert alone.worker.progress.silence == (None, 0.0)
        assert gang.worker.progress.silence == ("waiting for the other ranks", 3600.0)
