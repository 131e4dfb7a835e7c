"""The store: tests for a local folder and an S3 server, and for each of them alone."""

import hashlib
from pathlib import Path

import pytest

from workers.errors import UserError
from workers.storage.layout import checkpoint_dir, ensemble_dir, predictions_path, run_file
from workers.storage.manifest import (
    FileInfo,
    Manifest,
    commit,
    complete,
    discard,
    read_manifest,
    verify_files,
)
from workers.storage.store import CorruptFile, Store


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flip_a_byte(store: Store, path: str) -> None:
    data = bytearray(store.read(path))
    data[len(data) // 2] ^= 1
    store.write(path, data)


def write_manifest(store: Store, attempt: int, step: int, data: bytes = b"weights") -> Manifest:
    manifest = Manifest(
        name=f"r1/{step:08d}",
        attempt=attempt,
        step=step,
        files={"model.safetensors": FileInfo(size=len(data), sha256=sha256(data))},
    )
    store.write(f"{checkpoint_dir(manifest.checkpoint.id)}/model.safetensors", data)
    commit(store, manifest)
    return manifest


def test_written_files_are_read_back_and_listed_by_relative_path(store: Store) -> None:
    store.write("b/c/two", b"2")
    store.write("b/one", b"1")
    store.write("a", b"")
    assert store.read("b/c/two") == b"2"
    assert store.read("a") == b""
    assert store.list() == ["a", "b/c/two", "b/one"]
    assert store.list("b") == ["b/c/two", "b/one"]
    assert store.sizes("b") == {"b/one": 1, "b/c/two": 1}
    assert store.list("absent") == []


def test_a_write_replaces_the_file(store: Store) -> None:
    store.write("a", b"long ago")
    store.write("a", b"now")
    assert store.read("a") == b"now"


def test_a_missing_file_is_file_not_found(store: Store) -> None:
    for read in (store.read, store.fetch, store.hash):
        with pytest.raises(FileNotFoundError):
            read("absent")
    assert not store.exists("absent")


def test_files_and_folders_exist_until_deleted_and_may_be_deleted_twice(store: Store) -> None:
    store.write("b/one", b"1")
    store.write("b/two", b"2")
    assert store.exists("b")
    assert store.exists("b/one")
    store.delete("b/one")
    assert store.list("b") == ["b/two"]
    store.delete("b")
    assert store.list("b") == []
    store.delete("b")


def test_paths_outside_the_store_and_deletion_of_a_whole_store_are_refused(store: Store) -> None:
    for path in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(ValueError, match="leads out"):
            store.read(path)
    with pytest.raises(ValueError, match="whole store"):
        store.delete("")


def test_a_large_file_goes_in_and_out_unchanged(store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * 80_000  # 20 MB: several parts of a multipart upload
    (tmp_path / "large").write_bytes(data)
    store.put(tmp_path / "large", "large")
    assert store.read("large") == data
    assert store.hash("large") == sha256(data)
    assert store.fetch("large", sha256(data)).read_bytes() == data


def test_a_fetched_file_is_verified_and_named_when_it_is_corrupt(store: Store) -> None:
    store.write("runs/x/file", b"good bytes")
    assert store.fetch("runs/x/file", sha256(b"good bytes")).read_bytes() == b"good bytes"
    with pytest.raises(CorruptFile, match="runs/x/file"):
        store.fetch("runs/x/file", sha256(b"other bytes"))


def test_a_fetch_without_a_hash_sees_a_newer_file(store: Store) -> None:
    store.write("a", b"old")
    assert store.fetch("a").read_bytes() == b"old"
    store.write("a", b"newer")
    assert store.fetch("a").read_bytes() == b"newer"


def test_a_probe_leaves_nothing_behind(store: Store) -> None:
    store.probe()
    assert store.list() == []


def test_a_child_is_the_folder_inside(store: Store) -> None:
    store.child("inner").write("a", b"1")
    assert store.list() == ["inner/a"]


def test_a_complete_checkpoint_has_a_manifest_and_all_its_bytes(store: Store) -> None:
    store.write(f"{checkpoint_dir('r1/00000001-1')}/model.safetensors", b"no manifest")
    manifest = write_manifest(store, attempt=1, step=2)
    write_manifest(store, attempt=1, step=3)
    store.write(f"{checkpoint_dir('r1/00000003-1')}/model.safetensors", b"wei")
    assert [c for c, _ in complete(store, "r1", 1)] == [manifest.checkpoint]
    assert complete(store, "other", 1) == []


def test_checkpoints_of_other_attempts_are_not_adopted(store: Store) -> None:
    write_manifest(store, attempt=1, step=2)
    mine = [write_manifest(store, attempt=11, step=step) for step in (9, 4)]
    assert [c.step for c, _ in complete(store, "r1", 11)] == [4, 9]
    assert [c for c, _ in complete(store, "r1", 11)] == [mine[1].checkpoint, mine[0].checkpoint]


def test_a_cut_or_misplaced_manifest_is_none(store: Store) -> None:
    manifest = write_manifest(store, attempt=1, step=2)
    path = f"{checkpoint_dir(manifest.checkpoint.id)}/manifest.json"
    text = store.read(path)
    for end in range(0, len(text) - 2, 7):
        store.write(path, text[:end])
        assert read_manifest(store, manifest.checkpoint.id) is None
    store.write(f"{checkpoint_dir('r1/00000002-2')}/manifest.json", text)
    assert read_manifest(store, "r1/00000002-2") is None


def test_verify_names_the_file_that_is_missing_short_or_changed(store: Store) -> None:
    checkpoint_id = write_manifest(store, attempt=1, step=2).checkpoint.id
    path = f"{checkpoint_dir(checkpoint_id)}/model.safetensors"
    verify_files(store, checkpoint_id)
    flip_a_byte(store, path)
    with pytest.raises(CorruptFile, match=f"{path}.*corrupt"):
        verify_files(store, checkpoint_id)
    store.write(path, b"weig")
    with pytest.raises(CorruptFile, match=f"{path}.*4 bytes instead of 7"):
        verify_files(store, checkpoint_id)
    store.delete(path)
    with pytest.raises(CorruptFile, match=f"{path}.*missing"):
        verify_files(store, checkpoint_id)
    discard(store, checkpoint_id)
    with pytest.raises(CorruptFile, match="manifest.json"):
        verify_files(store, checkpoint_id)


def test_a_discarded_checkpoint_leaves_no_file(store: Store) -> None:
    other = write_manifest(store, attempt=1, step=1).checkpoint
    gone = write_manifest(store, attempt=1, step=2).checkpoint
    discard(store, gone.id)
    assert [c for c, _ in complete(store, "r1", 1)] == [other]
    assert store.list(checkpoint_dir(gone.id)) == []


def test_the_layout_is_the_contract() -> None:
    assert checkpoint_dir("base/1a2b") == "base/1a2b"
    assert checkpoint_dir("soup/s1") == "soups/s1"
    assert checkpoint_dir("r1/00000010-2") == "runs/r1/checkpoints/00000010-2"
    assert predictions_path("r1/00000010-2", "ood:sketch") == (
        "predictions/r1_00000010-2/ood_sketch.parquet"
    )
    assert run_file("r1", "logs", "attempt-1.log") == "runs/r1/logs/attempt-1.log"
    assert ensemble_dir("e1") == "ensembles/e1"
    with pytest.raises(ValueError, match="not the id"):
        checkpoint_dir("r1")


def test_a_query_string_stays_at_the_end_of_a_child() -> None:
    child = Store("s3://bucket/prefix/?endpoint_override=127.0.0.1:9&scheme=http").child("name")
    assert child.uri == "s3://bucket/prefix/name?endpoint_override=127.0.0.1:9&scheme=http"


def test_credentials_of_a_uri_are_hidden() -> None:
    assert str(Store("s3://key:secret@bucket/prefix?scheme=http")) == "s3://bucket/prefix"


def test_a_relative_local_path_does_not_depend_on_the_folder_of_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Store("./runs").child("x")
    assert here.uri == str(tmp_path / "runs" / "x")
    assert Store(f"file://{tmp_path}/runs/x").uri == here.uri


def test_a_local_file_is_used_in_place_and_hashed_again_only_when_it_changed(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path))
    store.write("a", b"good bytes")
    assert store.fetch("a", sha256(b"good bytes")) == tmp_path / "a"
    flip_a_byte(store, "a")
    with pytest.raises(CorruptFile, match="^a in"):
        store.fetch("a", sha256(b"good bytes"))


def test_a_remote_file_is_downloaded_once_and_again_if_its_copy_is_damaged(
    s3_uri: str, tmp_path: Path
) -> None:
    good = sha256(b"good bytes")
    cache = str(tmp_path / "cache")
    store = Store(s3_uri, cache)
    store.write("a", b"good bytes")
    local = store.fetch("a", good)
    store.delete("a")
    assert store.fetch("a", good) == local
    store.write("a", b"good bytes")
    local.write_bytes(b"other bytes.")
    assert Store(s3_uri, cache).fetch("a", good).read_bytes() == b"good bytes"


def test_an_unfinished_local_write_is_neither_listed_nor_left(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("a", b"old")
    with pytest.raises(RuntimeError), store.writing("a") as sink:
        sink.write(b"new")
        assert store.list() == ["a"]
        raise RuntimeError
    assert store.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_new_local_file_is_refused_where_one_is(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_new("ledger/a", b"1")
    with pytest.raises(FileExistsError):
        store.write_new("ledger/a", b"2")
    assert store.read("ledger/a") == b"1"


def test_a_store_that_cannot_be_written_to_is_a_user_error(tmp_path: Path, s3_uri: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written to"):
        Store(str(tmp_path / "file")).child("x").probe()
    missing = s3_uri.replace("s3://bucket-", "s3://no-such-bucket-")
    with pytest.raises(UserError, match="cannot be written to"):
        Store(missing).probe()
    with pytest.raises(UserError, match="nonsense://x/y"):
        Store("nonsense://x/y").probe()


def test_every_block_is_reported(store: Store) -> None:
    blocks: list[None] = []
    store.on_bytes = lambda: blocks.append(None)
    data = bytes(20 << 20)

    def num_blocks() -> int:
        count = len(blocks)
        blocks.clear()
        return count

    store.write("large", data)
    assert num_blocks() == 3
    assert store.read("large") == data and num_blocks() >= 1
    assert store.hash("large") == sha256(data) and num_blocks() >= 3
    store.fetch("large", sha256(data))
    assert num_blocks() >= 3
    assert store.child("inner").on_bytes is store.on_bytes
