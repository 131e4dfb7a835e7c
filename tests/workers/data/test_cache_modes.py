"""Training pixels: the same bits in every mode of the cache, also with damaged cache files."""

import hashlib
import multiprocessing
import os
import pickle
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from workers.config.data import DataConfig
from workers.data import Images, Sample, TrainPixels, eval_pixels, train_pixels
from workers.data.decode import decode, reduce
from workers.data.pixel_cache import CachedImages, DecodedImages, content_key
from workers.errors import UserError
from workers.storage import node_cache

PREPROCESSING: dict[str, Any] = {
    "input_size": [3, 14, 14],
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 0.9,
    "crop_mode": "center",
}
SHORTER = 16
"""Shorter side that training images are reduced to for PREPROCESSING."""
FORMATS = {"RGB": ["png", "jpg", "bmp"], "L": ["png", "jpg"], "RGBA": ["png"], "P": ["gif"]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache folder of a test. The one in memory is its own as well: others may be using the
    user's."""
    monkeypatch.setenv("SOUPFLEET_CACHE", str(tmp_path / "cache"))
    shared = node_cache.SHARED_MEMORY
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as memory:
        monkeypatch.setattr(node_cache, "SHARED_MEMORY", Path(memory))
        yield tmp_path / "cache"


def write(path: Path, seed: int, size: tuple[int, int], mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "RGBA": (4,)}.get(mode, ())
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], *channels), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def images_of(paths: list[Path], mode: str = "disk", split: str = "train") -> Images:
    samples = [
        Sample(split, path.name, str(path), 0, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in paths
    ]
    return Images(("a", "b"), samples, DataConfig(cache=mode))  # type: ignore[arg-type]


def write_images(tmp_path: Path, mode: str = "disk", num: int = 12) -> Images:
    paths = [write(tmp_path / f"images/{i:02d}.png", i, (18 + i, 40 - i % 20)) for i in range(num)]
    return images_of(paths, mode)


def bits(pixels: TrainPixels) -> list[tuple[tuple[int, ...], bytes]]:
    """Shape (H, W, 3) and bytes of every image."""
    arrays = [pixels.tensor(i).permute(1, 2, 0).numpy() for i in range(len(pixels))]
    return [(array.shape, array.tobytes()) for array in arrays]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


IMAGES = st.lists(
    st.tuples(
        st.tuples(st.integers(1, 70), st.integers(1, 70)),
        st.sampled_from([(mode, kind) for mode, kinds in FORMATS.items() for kind in kinds]),
    ),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pictures=IMAGES, seed=st.integers(0, 10**6))
def test_no_mode_changes_a_bit(
    tmp_path: Path, pictures: list[tuple[tuple[int, int], tuple[str, str]]], seed: int
) -> None:
    paths = [
        write(tmp_path / f"{i}.{kind}", seed + i, size, mode)
        for i, (size, (mode, kind)) in enumerate(pictures)
    ]
    ours = {mode: images_of(paths, mode) for mode in ("off", "disk", "memory", "auto")}
    pixels = {mode: train_pixels(images, PREPROCESSING) for mode, images in ours.items()}
    kinds = {mode: type(value) for mode, value in pixels.items()}
    assert kinds["off"] is DecodedImages and kinds["disk"] is kinds["memory"] is CachedImages
    assert all(bits(other) == bits(pixels["off"]) for other in pixels.values())
    for value in pixels.values():
        assert [value[i].tobytes() for i in range(len(value))] == [b for _, b in bits(value)]
        assert {value[i].mode for i in range(len(value))} == {"RGB"}
    whole = {mode: eval_pixels(images, "train", PREPROCESSING) for mode, images in ours.items()}
    assert all(torch.equal(other, whole["off"]) for other in whole.values())


@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)), shorter=st.sampled_from([8, 16, 33])
)
def test_the_shorter_side_is_reduced_and_nothing_enlarged(
    size: tuple[int, int], shorter: int
) -> None:
    small = reduce(Image.new("RGB", size), shorter)
    if min(size) <= shorter:
        assert small.size == size
    else:
        assert min(small.size) == shorter
        assert max(small.size) == round(max(size) * shorter / min(size))


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path: Path) -> None:
    smooth = Image.radial_gradient("L").resize((640, 480)).convert("RGB")
    smooth.save(tmp_path / "a.jpg", quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    assert decode(content, at_least=100).size == (160, 120)
    assert decode(content, at_least=400).size == decode(content).size == (640, 480)
    quick, whole = (np.asarray(reduce(decode(content, least), 50), int) for least in (100, None))
    assert abs(quick - whole).max() <= 4


def test_cache_size_is_obeyed_and_names_another_file(tmp_path: Path, folder: Path) -> None:
    images = write_images(tmp_path)
    train_pixels(images, PREPROCESSING)
    images.spec = DataConfig(cache="disk", cache_size=8)
    images.pixels.clear()
    small = train_pixels(images, PREPROCESSING)
    assert min(small.tensor(3).shape[1:]) == 8 and len(files(folder)) == 2
    images.spec = DataConfig(cache="disk")
    oblong = train_pixels(images, {**PREPROCESSING, "input_size": [3, 14, 21]})
    assert min(oblong[3].size) == SHORTER and len(files(folder)) == 2  # as for 14 x 14


def test_equal_contents_share_a_file_and_others_do_not(tmp_path: Path, folder: Path) -> None:
    images = write_images(tmp_path)
    samples = images.samples("train")
    others = [Sample("train", f"{i}", s.path, 1, s.sha256) for i, s in enumerate(samples)]
    expected = bits(train_pixels(images, PREPROCESSING))
    built = files(folder)
    relabelled, shuffled = (Images(("x",), o, images.spec) for o in (others, others[::-1]))
    assert bits(train_pixels(relabelled, PREPROCESSING)) == expected
    assert bits(train_pixels(shuffled, PREPROCESSING)) == expected[::-1]
    assert files(folder) == built
    keys = {
        content_key(samples, {"a": 1}),
        content_key(samples[::-1], {"a": 1}),
        content_key(samples[1:], {"a": 1}),
        content_key(samples, {"a": 2}),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "shorter", "gone"])
def test_a_damaged_or_missing_file_is_built_again(
    tmp_path: Path, folder: Path, damage: str
) -> None:
    images = write_images(tmp_path)
    train, whole = train_pixels(images, PREPROCESSING), eval_pixels(images, "train", PREPROCESSING)
    expected, rendered = bits(train), whole.clone()
    for path in files(folder):
        content = path.read_bytes()
        path.unlink()
        if damage == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "noise":
            path.write_bytes(bytes(len(content)))
    if damage == "shorter":  # complete, but of fewer images
        fewer = write_images(tmp_path, num=3)
        train_pixels(fewer, PREPROCESSING), eval_pixels(fewer, "train", PREPROCESSING)
        for shaping in ({"reduced to": SHORTER}, PREPROCESSING):
            key, old = (content_key(i.samples("train"), shaping) for i in (images, fewer))
            (folder / f"{old}.arrow").rename(folder / f"{key}.arrow")
    assert bits(train) == expected and torch.equal(whole, rendered)  # still mapped
    images.pixels.clear()
    assert bits(train_pixels(images, PREPROCESSING)) == expected
    assert torch.equal(eval_pixels(images, "train", PREPROCESSING), rendered)
    assert len(files(folder)) == 2


def test_a_killed_builder_leaves_no_usable_file(tmp_path: Path, folder: Path) -> None:
    images = write_images(tmp_path)

    def die_at(step: int) -> Any:
        steps = iter(range(step))

        def touch() -> None:
            if next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        return touch

    for build in (train_pixels, lambda i, c, touch: eval_pixels(i, "train", c, touch=touch)):
        process = multiprocessing.get_context("fork").Process(
            target=build, args=(images, PREPROCESSING), kwargs={"touch": die_at(5)}
        )
        process.start()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        assert len(list(folder.glob(".*.tmp"))) == 1 and not list(folder.glob("*.arrow"))
    off = images_of([Path(sample.path) for sample in images.samples("train")], "off")
    assert bits(train_pixels(images, PREPROCESSING)) == bits(train_pixels(off, PREPROCESSING))
    assert torch.equal(
        eval_pixels(images, "train", PREPROCESSING), eval_pixels(off, "train", PREPROCESSING)
    )
    assert len(files(folder)) == 2


class Arrays(Dataset[np.ndarray]):
    def __init__(self, pixels: TrainPixels) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> np.ndarray:
        return np.asarray(self.pixels[i]).copy()


@pytest.mark.parametrize("mode", ["disk", "off"])
def test_loader_processes_read_the_same(tmp_path: Path, mode: str) -> None:
    pixels = train_pixels(write_images(tmp_path, mode), PREPROCESSING)
    for loader in (
        DataLoader(Arrays(pixels), batch_size=None, num_workers=2),
        DataLoader(Arrays(pickle.loads(pickle.dumps(pixels))), batch_size=None, num_workers=2),
    ):
        read = [(tuple(x.shape), x.numpy().tobytes()) for x in loader]
        assert read == bits(pixels)


def test_cached_images_are_pickled_as_a_path(tmp_path: Path) -> None:
    assert len(pickle.dumps(train_pixels(write_images(tmp_path), PREPROCESSING))) < 1000


def test_a_forked_loader_process_does_not_need_the_file(tmp_path: Path, folder: Path) -> None:
    pixels = train_pixels(write_images(tmp_path), PREPROCESSING)
    expected = bits(pixels)
    for path in files(folder):
        path.unlink()
    loader = DataLoader(Arrays(pixels), batch_size=None, num_workers=1)
    assert [x.numpy().tobytes() for x in loader] == [content for _, content in expected]


@pytest.mark.parametrize("mode", ["auto", "disk", "memory", "off"])
def test_an_image_that_is_gone_is_named_and_never_skipped(tmp_path: Path, mode: str) -> None:
    images = write_images(tmp_path, mode, num=70)
    Path(images.samples("train")[50].path).unlink()
    Path(images.samples("train")[51].path).write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"training image 50\.png can no longer be read"):
        train_pixels(images, PREPROCESSING)[50]
    with pytest.raises(OSError, match=r"train image 50\.png can no longer be read"):
        eval_pixels(images, "train", PREPROCESSING)
    with pytest.raises(OSError, match=r"image 51\.png"):
        DecodedImages(images, 8)[51]


def test_auto_works_without_a_folder_and_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    images = write_images(tmp_path, "auto", num=70)
    cached = train_pixels(images, PREPROCESSING)
    assert isinstance(cached, CachedImages)
    monkeypatch.setenv("SOUPFLEET_CACHE", str(tmp_path / "file"))
    images.pixels.clear()
    assert bits(train_pixels(images, PREPROCESSING)) == bits(cached)
    assert "not cached" in caplog.text
    with pytest.raises(UserError, match=r"data\.cache=disk .*SOUPFLEET_CACHE"):
        train_pixels(write_images(tmp_path, "disk"), PREPROCESSING)


@pytest.mark.parametrize("mode", ["disk", "memory"])
def test_a_full_cache_is_named_and_images_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    expected = eval_pixels(write_images(tmp_path, "off", num=20), "train", PREPROCESSING)
    monkeypatch.setenv("SOUPFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SOUPFLEET_CACHE_GB", "0.00001")
    pixels = eval_pixels(write_images(tmp_path, mode, num=20), "train", PREPROCESSING)
    assert torch.equal(pixels, expected)
    assert "decoded in every run, not cached: [Errno 28] no room for" in caplog.text


def test_auto_caches_no_file_of_few_images(tmp_path: Path, folder: Path) -> None:
    images = write_images(tmp_path, "auto")
    assert isinstance(train_pixels(images, PREPROCESSING), DecodedImages)
    eval_pixels(images, "train", PREPROCESSING)
    assert files(folder) == []


def test_writes_to_evaluation_pixels_stay_in_this_process(tmp_path: Path) -> None:
    images = write_images(tmp_path)
    pixels = eval_pixels(images, "train", PREPROCESSING)
    original = pixels.clone()
    pixels.zero_()
    images.pixels.clear()
    assert torch.equal(eval_pixels(images, "train", PREPROCESSING), original)


def test_many_batches_of_a_file_are_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record batch has as many images as fit, at least one."""
    monkeypatch.setattr("workers.data.pixel_file.BATCH_BYTES", 4000)
    cached, off = (
        train_pixels(write_images(tmp_path, mode), PREPROCESSING) for mode in ("disk", "off")
    )
    assert bits(cached) == bits(off)
    with pytest.raises(IndexError):
        cached[12]
