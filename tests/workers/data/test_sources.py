"""Sources: the same images give the same splits, wherever and however they are packed."""

import http.server
import multiprocessing
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from tests.image_folders import write_classes
from tests.shard_writers import write_parquet, write_shards
from workers.config.data import DataConfig
from workers.data import Images, scan
from workers.data.remote_files import Files, join, public_uri
from workers.errors import UserError
from workers.storage.store import Store


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server that answers requests for a range of bytes, unlike that of the standard library."""

    def do_GET(self) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if match is None or not path.is_file():
            return super().do_GET()
        content = path.read_bytes()
        first, last = int(match[1]), int(match[2])
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args: Any) -> None:
        pass


class Whole(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


Serve = Callable[[Path, type[http.server.SimpleHTTPRequestHandler]], str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A function that serves a folder on this machine and returns its URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(folder: Path, kind: type[http.server.SimpleHTTPRequestHandler]) -> str:
        handler = partial(kind, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """The same images as class folders, shards and Parquet files. Two images have copies."""
    write_classes(tmp_path / "folder", {"ant": 14, "bee": 12, "cat": 13})
    for name, copy in (("ant/a0.png", "ant/003.png"), ("bee/b0.png", "ant/004.png")):
        (tmp_path / "folder" / name).write_bytes((tmp_path / "folder" / copy).read_bytes())
    # In another order than in the folder.
    names = [tmp_path / "shards" / f"{k}.tar" for k in (2, 0, 1)]
    (tmp_path / "shards").mkdir()
    classes = write_shards(tmp_path / "folder", names)
    (tmp_path / "shards" / "classes.json").write_text(str(list(classes)).replace("'", '"'))
    write_parquet(tmp_path / "folder", tmp_path / "hub.parquet", hub=True)
    return tmp_path


def shards_of(root: str, **settings: Any) -> DataConfig:
    return DataConfig(source="webdataset", root=root, train="{0..2}.tar", **settings)


def labels_and_hashes(images: Images) -> dict[str, list[tuple[int, str]]]:
    names = [*images.split_names, *(f"fold:{k}" for k in range(len(images.fold_counts)))]
    return {
        name: [(sample.label, sample.sha256) for sample in images.samples(name)] for name in names
    }


def upload(folder: Path, uri: str) -> None:
    filesystem, root = fs.FileSystem.from_uri(uri)
    for path in sorted(folder.iterdir()):
        with filesystem.open_output_stream(f"{root}/{path.name}") as stream:
            stream.write(path.read_bytes())


def test_the_same_images_are_in_the_same_order_from_any_source(
    packed: Path, serve: Serve, s3_uri: str
) -> None:
    upload(packed / "shards", s3_uri)
    specs = [
        DataConfig(root=str(packed / "folder"), folds=3),
        DataConfig(root=str(packed), train="folder", classes=["ant", "bee", "cat"], folds=3),
        shards_of(str(packed / "shards"), folds=3),
        shards_of(f"file://{packed}/shards", folds=3),
        shards_of(serve(packed / "shards", Ranges), folds=3),
        shards_of(s3_uri, folds=3),
        DataConfig(source="parquet", root=str(packed), train="hub.parquet", folds=3),
    ]
    scanned = [scan(spec, seed=3)[0] for spec in specs]
    first = scanned[0]
    assert {*labels_and_hashes(first)} == {"train", "val", "test", "fold:0", "fold:1", "fold:2"}
    for images in scanned[1:]:
        assert images.classes == first.classes
        assert labels_and_hashes(images) == labels_and_hashes(first)
        assert images.content("fold:1", 2) == first.content("fold:1", 2)
        assert images.image("val", 0).tobytes() == first.image("val", 0).tobytes()


def test_images_can_be_pickled_and_stored(packed: Path, serve: Serve) -> None:
    spec = shards_of(serve(packed / "shards", Ranges))
    images, _, _ = scan(spec, seed=0)
    expected = [images.content("train", i) for i in range(images.count("train"))]
    images.save(Store(str(packed / "store")))
    for again in (
        pickle.loads(pickle.dumps(images)),
        Images.load(Store(str(packed / "store")), spec),
    ):
        assert [again.content("train", i) for i in again.stored_order("train")] == [
            expected[i] for i in images.stored_order("train")
        ]


def test_stored_order_reads_every_file_once(packed: Path) -> None:
    images, _, _ = scan(shards_of(str(packed / "shards")), seed=0)
    order = images.stored_order("train")
    assert sorted(order.tolist()) == list(range(images.count("train")))
    places = [(images.samples("train")[i].path, images.samples("train")[i].offset) for i in order]
    assert places == sorted(places)


def test_a_parquet_file_is_read_over_http(packed: Path, serve: Serve) -> None:
    spec = DataConfig(source="parquet", root=serve(packed, Ranges), train="hub.parquet")
    images, _, _ = scan(spec, seed=0)
    assert images.keys("train")[0].startswith("hub.parquet/")
    assert images.classes == ("ant", "bee", "cat")


def test_a_server_without_ranges_is_refused(packed: Path, serve: Serve) -> None:
    url = serve(packed / "shards", Whole)
    with pytest.raises(UserError, match="range of bytes"):
        scan(shards_of(url, classes=["ant", "bee", "cat"]), seed=0)


def test_a_missing_remote_file_is_named(packed: Path, serve: Serve, s3_uri: str) -> None:
    upload(packed / "shards", s3_uri)
    for root in (serve(packed / "shards", Ranges), s3_uri):
        spec = shards_of(root).model_copy(update={"train": {"x": "{0..4}.tar"}})
        with pytest.raises(UserError, match=r"names 3\.tar"):
            scan(spec, seed=0)
    with pytest.raises(UserError, match=r"there are 0\.tar, 1\.tar, 2\.tar"):
        scan(spec, seed=0)
    globbed = spec.model_copy(update={"train": {"x": "*.tar"}})
    assert scan(globbed, seed=0)[0].classes == ("ant", "bee", "cat")


def test_a_server_that_does_not_answer_is_no_user_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/.* does not answer") as caught:
        scan(shards_of("http://127.0.0.1:9/data?token=secret"), seed=0)
    assert not isinstance(caught.value, FileNotFoundError) and "secret" not in str(caught.value)


def test_a_file_that_is_deleted_later_is_an_error_not_a_skip(packed: Path, serve: Serve) -> None:
    images, _, _ = scan(shards_of(serve(packed / "shards", Ranges)), seed=0)
    for shard in (packed / "shards").glob("*.tar"):
        shard.unlink()
    with pytest.raises(OSError, match=r"\.tar"):
        pickle.loads(pickle.dumps(images)).content("train", 0)


def test_a_folder_source_is_local(packed: Path) -> None:
    with pytest.raises(UserError, match="reads local folders"):
        scan(DataConfig(root="s3://bucket/images"), seed=0)


def test_an_unknown_kind_of_uri_is_refused() -> None:
    with pytest.raises(UserError, match="nonsense://x/y"):
        scan(shards_of("nonsense://x/y"), seed=0)


def test_a_class_folder_outside_the_list_is_refused(packed: Path) -> None:
    spec = DataConfig(root=str(packed / "folder"), classes=["ant", "cat"])
    with pytest.raises(UserError, match="'bee' that data.classes does not have"):
        scan(spec, seed=0)


@pytest.mark.parametrize(
    "classes,message",
    [
        (["ant"], "has 1 class"),
        (["ant", "bee", "ant"], "'ant' twice"),
        ("missing.json", "which is not there"),
        ("object.json", "not a JSON list"),
        ("broken.json", "neither JSON nor text"),
    ],
)
def test_a_bad_class_list_is_refused(packed: Path, classes: Any, message: str) -> None:
    (packed / "object.json").write_text('{"ant": 0}')
    (packed / "broken.json").write_text('["ant", ')
    with pytest.raises(UserError, match=message):
        scan(DataConfig(root=str(packed), train="folder", classes=classes), seed=0)


def test_the_order_of_the_list_is_the_order_of_the_labels(packed: Path) -> None:
    (packed / "names.txt").write_text("cat\nbee\nant\n")
    spec = DataConfig(root=str(packed), train="folder", classes="names.txt")
    images, _, _ = scan(spec, seed=0)
    assert images.classes == ("cat", "bee", "ant")
    key, label = images.keys("train")[0], int(images.labels("train")[0])
    assert key.split("/")[1] == images.classes[label]


def test_paths_and_uris_are_joined() -> None:
    assert join("s3://b/x?scheme=http", "y/a.tar") == "s3://b/x/y/a.tar?scheme=http"
    assert join("/data", "a.tar") == "/data/a.tar" == join("file:///data", "a.tar")
    assert join("s3://b/x", "https://h/a.tar") == "https://h/a.tar"
    assert join("/data", "/else/a.tar") == "/else/a.tar"
    assert public_uri("s3://key:secret@b/x?token=1") == "s3://b/x"


def test_a_range_has_exactly_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(100)))
    files = Files()
    assert files.read(str(tmp_path / "x"), 10, 5) == bytes(range(10, 15))
    assert files.read(str(tmp_path / "x")) == bytes(range(100))
    with pytest.raises(OSError, match="ends before byte 102"):
        files.read(str(tmp_path / "x"), 98, 4)
    with pytest.raises(FileNotFoundError):
        files.read(str(tmp_path / "y"))


@pytest.mark.parametrize("place", ["http", "s3"])
def test_forked_processes_read_remote_images(
    packed: Path, serve: Serve, s3_uri: str, place: str
) -> None:
    upload(packed / "shards", s3_uri)
    root = s3_uri if place == "s3" else serve(packed / "shards", Ranges)
    images, _, _ = scan(shards_of(root), seed=0)
    expected = [images.content("train", i) for i in range(6)]
    forking = multiprocessing.get_context("fork")
    receiver, sender = forking.Pipe(duplex=False)

    def child() -> None:  # inherits open files, as loader processes do
        sender.send([images.content("train", i) for i in range(6)])

    process = forking.Process(target=child)
    process.start()
    assert receiver.poll(60)
    assert receiver.recv() == expected
    process.join(60)
    assert process.exitcode == 0
