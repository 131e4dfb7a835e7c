"""Checkpoints: bytes, background writer and verified reading; local and on S3."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from workers.storage.checkpoint_writer import CheckpointWriter, write_checkpoint
from workers.storage.checkpoints import TrainState, load_train_state, open_weights
from workers.storage.layout import checkpoint_dir
from workers.storage.manifest import complete, discard, read_manifest, verify_files
from workers.storage.store import CorruptFile, Store
from workers.types import Checkpoint, Score

SCORE = Score(count=2, top1=0.5, macro_f1=None, nll=1.0, ece=0.1)


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Tensors of every dtype of a network, a scalar, an empty one, odd names and lengths."""
    g = torch.Generator().manual_seed(seed)
    return {
        "head.weight": torch.randn(3, 5, generator=g),
        "half": torch.randn(7, generator=g).half(),
        "brain": torch.randn(2, 3, generator=g).bfloat16(),
        "double": torch.randn(3, generator=g, dtype=torch.float64),
        "num_batches_tracked": torch.tensor(12),
        "mask": torch.tensor([True, False, True]),
        "index": torch.arange(3, dtype=torch.int32),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.empty(0, 4),
        'quoted "é" \\ name': torch.ones(1),
        "transposed": torch.randn(4, 3, generator=g).t(),
        "channels_last": torch.randn(1, 2, 3, 3, generator=g).to(memory_format=torch.channels_last),
    }


def state(seed: int = 0) -> TrainState:
    moments = {"exp_avg": torch.full((3, 5), float(seed)), "step": torch.tensor(3.0)}
    return TrainState(moments, {"epoch": seed, "group": {"lr": 0.1 + 0.2}})


def weights_path(checkpoint: Checkpoint) -> str:
    return f"{checkpoint_dir(checkpoint.id)}/model.safetensors"


def flip_a_byte(store: Store, path: str) -> None:
    data = bytearray(store.read(path))
    data[-1] ^= 1
    store.write(path, data)


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name]), name


def test_bytes_are_those_of_the_safetensors_library(store: Store) -> None:
    checkpoint = write_checkpoint(store, "base/1", None, 0, tensors())
    plain = {name: tensor.contiguous() for name, tensor in tensors().items()}
    assert store.read(weights_path(checkpoint)) == save_bytes(plain, {"format": "pt"})


def test_the_same_tensors_in_another_order_give_the_same_bytes(store: Store) -> None:
    forward = write_checkpoint(store, "base/1", None, 0, tensors())
    backward = write_checkpoint(store, "base/2", None, 0, dict(reversed(tensors().items())))
    assert forward.sha256 == backward.sha256


def test_written_tensors_and_state_are_read_back(store: Store) -> None:
    checkpoint = write_checkpoint(store, "r1/00000003", 2, 3, tensors(), train_state=state(7))
    with open_weights(store, checkpoint) as weights:
        assert_same(dict(weights), tensors())
        assert len(weights) == len(tensors())
        assert weights.nbytes == sum(tensor.nbytes for tensor in tensors().values())
        with pytest.raises(KeyError):
            weights["absent"]
    back = load_train_state(store, checkpoint)
    assert back is not None
    assert_same(back.tensors, state(7).tensors)
    assert back.scalars == state(7).scalars


def test_a_checkpoint_without_training_state_has_none(store: Store) -> None:
    checkpoint = write_checkpoint(store, "soup/1", None, 0, tensors())
    assert load_train_state(store, checkpoint) is None


def test_the_manifest_describes_the_checkpoint(store: Store) -> None:
    checkpoint = write_checkpoint(
        store,
        "r1/00000003",
        2,
        3,
        tensors(),
        train_state=state(),
        base="base/1",
        score=SCORE,
        extra_files={"config.json": b"{}"},
        extra={"note": [1]},
    )
    manifest = read_manifest(store, checkpoint.id)
    assert manifest is not None
    assert (manifest.base, manifest.score, manifest.extra) == ("base/1", SCORE, {"note": [1]})
    folder = checkpoint_dir(checkpoint.id)
    sizes = {path.removeprefix(f"{folder}/"): size for path, size in store.sizes(folder).items()}
    sizes.pop("manifest.json")
    assert {name: file.size for name, file in manifest.files.items()} == sizes
    assert checkpoint.num_bytes == sum(sizes.values())
    assert checkpoint == manifest.checkpoint
    verify_files(store, checkpoint.id)


def test_tied_tensors_are_all_written(store: Store) -> None:
    shared = torch.randn(4, 4)
    tied = {"embed": shared, "head": shared, "corner": shared[:2, :2]}
    with CheckpointWriter(store) as writer:
        writer.submit("r1/00000001", 1, 1, tied)
        [checkpoint] = writer.flush()
    with open_weights(store, checkpoint) as weights:
        assert_same(dict(weights), tied)


def test_a_dtype_that_safetensors_lacks_is_named(store: Store) -> None:
    with pytest.raises(ValueError, match="tensor odd has dtype torch.complex128"):
        write_checkpoint(store, "base/1", None, 0, {"odd": torch.zeros(1, dtype=torch.complex128)})


@pytest.mark.parametrize("name", ["model.safetensors", "train_state.safetensors"])
def test_a_flipped_byte_of_a_committed_file_is_found_and_the_file_named(
    store: Store, name: str
) -> None:
    checkpoint = write_checkpoint(store, "r1/00000003", 2, 3, tensors(), train_state=state())
    path = f"{checkpoint_dir(checkpoint.id)}/{name}"
    flip_a_byte(store, path)
    with pytest.raises(CorruptFile, match=path):
        open_weights(store, checkpoint)
        load_train_state(store, checkpoint)
    with pytest.raises(CorruptFile, match=path):
        verify_files(store, checkpoint.id)


def test_training_state_beside_other_weights_is_refused(store: Store) -> None:
    old = write_checkpoint(store, "r1/00000003", 2, 3, tensors(0), train_state=state())
    write_checkpoint(store, "r1/00000003", 2, 3, tensors(1), train_state=state())
    with pytest.raises(CorruptFile, match="manifest.json"):
        load_train_state(store, old)


def test_training_may_change_submitted_tensors(store: Store) -> None:
    live, moments = tensors(), state()
    release = threading.Event()
    with CheckpointWriter(store) as writer:
        writer.submit("r1/00000001", 1, 1, tensors(9), before_manifest=release.wait)
        writer.submit("r1/00000002", 1, 2, live, train_state=moments)
        for tensor in (*live.values(), *moments.tensors.values()):
            tensor.zero_()
        moments.scalars["group"]["lr"] = 0
        release.set()
        _, checkpoint = writer.flush()
    with open_weights(store, checkpoint) as weights:
        assert_same(dict(weights), tensors())
    back = load_train_state(store, checkpoint)
    assert back is not None
    assert back.scalars == state().scalars
    assert_same(back.tensors, state().tensors)


def test_the_writer_writes_the_same_as_the_synchronous_call(store: Store) -> None:
    plain = write_checkpoint(store, "r1/00000001", 1, 1, tensors(), train_state=state())
    with CheckpointWriter(store) as writer:
        for attempt in (2, 3, 4, 5):  # from the third on, host memory is reused
            writer.submit("r1/00000001", attempt, 1, tensors(), train_state=state())
        others = writer.flush()
    assert [c.attempt for c in others] == [2, 3, 4, 5]
    assert {(c.sha256, c.num_bytes) for c in others} == {(plain.sha256, plain.num_bytes)}


def test_done_returns_every_checkpoint_once_when_it_is_complete(store: Store) -> None:
    release = threading.Event()
    with CheckpointWriter(store) as writer:
        writer.submit("r1/00000001", 1, 1, tensors(), before_manifest=release.wait)
        assert writer.done() == []
        assert complete(store, "r1", 1) == []
        release.set()
        assert [c.step for c in writer.flush()] == [1]
        assert writer.done() == []
    assert [c.step for c, _ in complete(store, "r1", 1)] == [1]


def test_before_manifest_runs_between_the_files_and_the_manifest(
    store: Store,
) -> None:
    paths: list[str] = []

    def look() -> None:
        paths.extend(store.list())

    write_checkpoint(store, "base/1", None, 0, tensors(), before_manifest=look)
    assert paths == ["base/1/model.safetensors"]


def test_a_third_submission_waits_until_the_first_is_written(store: Store) -> None:
    release = threading.Event()
    with CheckpointWriter(store) as writer:
        for step in (1, 2):
            writer.submit(f"r1/{step:08d}", 1, step, tensors(), before_manifest=release.wait)
        threading.Timer(0.3, release.set).start()
        assert writer.stall_s < 0.25
        writer.submit("r1/00000003", 1, 3, tensors())
        assert writer.stall_s > 0.2
        assert [c.step for c in writer.flush()] == [1, 2, 3]


def fail() -> None:
    raise OSError("the store is gone")


@pytest.mark.parametrize("call", [CheckpointWriter.flush, CheckpointWriter.close])
def test_an_error_of_the_writer_is_raised_once_by_the_next_call(
    store: Store, call: Callable[[CheckpointWriter], object]
) -> None:
    writer = CheckpointWriter(store)
    writer.submit("r1/00000001", 1, 1, tensors(), before_manifest=fail)
    with pytest.raises(OSError, match="the store is gone"):
        call(writer)
    writer.close()
    assert complete(store, "r1", 1) == []


def test_an_error_of_the_writer_hides_no_complete_checkpoint(store: Store) -> None:
    with CheckpointWriter(store) as writer:
        writer.submit("r1/00000001", 1, 1, tensors())
        writer.submit("r1/00000002", 1, 2, tensors(), before_manifest=fail)
        with pytest.raises(OSError, match="the store is gone"):
            writer.flush()
        assert [c.step for c in writer.flush()] == [1]


def test_an_exception_drops_writes_that_have_not_started(store: Store) -> None:
    started, release = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        release.wait()

    with pytest.raises(KeyboardInterrupt), CheckpointWriter(store) as writer:
        writer.submit("r1/00000001", 1, 1, tensors(), before_manifest=hold)
        writer.submit("r1/00000002", 1, 2, tensors())
        started.wait()
        threading.Timer(0.2, release.set).start()
        raise KeyboardInterrupt
    assert [c.step for c, _ in complete(store, "r1", 1)] == [1]


def test_open_weights_stay_readable_after_the_checkpoint_is_deleted(store: Store) -> None:
    old = write_checkpoint(store, "r1/00000001", 1, 1, tensors())
    new = write_checkpoint(store, "r1/00000002", 1, 2, tensors(1))
    with open_weights(store, old) as weights:
        discard(store, old.id)
        assert_same(dict(weights), tensors())
    assert [c for c, _ in complete(store, "r1", 1)] == [new]


def test_tensors_stay_valid_after_their_file_is_closed(store: Store) -> None:
    checkpoint = write_checkpoint(store, "base/1", None, 0, tensors())
    with open_weights(store, checkpoint) as weights:
        head = weights["head.weight"]
    assert torch.equal(head, tensors()["head.weight"])


KILLED = """
import os, sys, torch
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.store import Store
die = lambda: os.kill(os.getpid(), 9)
write_checkpoint(Store(sys.argv[1]), "r1/00000001", 1, 1, {"a": torch.ones(3)}, before_manifest=die)
"""


def test_a_checkpoint_whose_writer_was_killed_before_the_manifest_is_not_complete(
    tmp_path: os.PathLike[str],
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    store = Store(str(tmp_path))
    assert killed.returncode == -9
    assert store.list() == ["runs/r1/checkpoints/00000001-1/model.safetensors"]
    assert complete(store, "r1", 1) == []


def test_metadata_is_only_the_format(store: Store) -> None:
    checkpoint = write_checkpoint(store, "base/1", None, 0, tensors())
    data = store.read(weights_path(checkpoint))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}
    assert_same(load_bytes(data), tensors())


@pytest.mark.gpu
def test_a_state_on_a_device_is_copied_through_pinned_memory(tmp_path: os.PathLike[str]) -> None:
    store = Store(str(tmp_path))
    live = {name: tensor.cuda() for name, tensor in tensors().items()}
    with CheckpointWriter(store) as writer:
        writer.submit("r1/00000001", 1, 1, live)
        for tensor in live.values():
            tensor.zero_()
        [checkpoint] = writer.flush()
    with open_weights(store, checkpoint) as weights:
        assert_same(dict(weights), tensors())


@pytest.mark.parametrize("name", ["train_state.json", "train_state.safetensors"])
def test_a_manifest_that_lost_the_name_of_a_file_is_corrupt(store: Store, name: str) -> None:
    """Otherwise the run would go on without its optimizer's state, or end in a KeyError."""
    checkpoint = write_checkpoint(store, "run/00000001", 1, 1, tensors(), train_state=state())
    manifest = f"{checkpoint_dir(checkpoint.id)}/manifest.json"
    store.write(manifest, store.read(manifest).replace(name.encode(), b"x" + name[1:].encode()))
    with pytest.raises(CorruptFile, match=r"manifest\.json"):
        load_train_state(store, checkpoint)
