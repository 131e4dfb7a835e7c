"""Decoding of images that a stranger made: a list of formats, a limit of pixels, no program."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workers.data import decode as decoding
from workers.data.decode import DAMAGED, UndecodableImage, decode, decoding_fault

PROGRAMS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}
"""Audit events of a process that is started."""

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
FITS = b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800)


@pytest.fixture
def programs() -> Iterator[list[str]]:
    """Names of the audit events of programs that the test starts."""
    started: list[str] = []
    is_over = False

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in PROGRAMS and not is_over:
            started.append(event)

    sys.addaudithook(note)
    yield started
    is_over = True


def _encoded(format: str, size: tuple[int, int] = (8, 6)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format)
    return content.getvalue()


@pytest.mark.parametrize("format", decoding.FORMATS)
def test_every_listed_format_decodes(format: str) -> None:
    image = decode(_encoded(format))
    assert image.mode == "RGB" and image.size == (8, 6)


@pytest.mark.parametrize(
    ("content", "name"),
    [(POSTSCRIPT, "EPS"), (FITS, "FITS"), (_encoded("PPM"), "PPM"), (_encoded("ICO"), "ICO")],
)
def test_other_formats_are_refused_by_name(content: bytes, name: str, programs: list[str]) -> None:
    assert decoding_fault(content) == f"its format is {name}"
    assert not programs


@pytest.mark.parametrize("format", decoding.FORMATS)
def test_a_truncated_image_is_damaged(format: str) -> None:
    content = _encoded(format, (64, 64))
    assert decoding_fault(content[: len(content) // 3]) == DAMAGED


def test_an_image_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 40)
    with pytest.raises(UndecodableImage, match="8 x 6 pixels are too many"):
        decode(_encoded("PNG"))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    assert decode(content.getvalue()).getpixel((0, 0)) == (255, 0, 0)


def test_postscript_named_png_starts_no_program_in_a_scan(
    tmp_path: Path, programs: list[str]
) -> None:
    from workers.config.data import DataConfig
    from workers.data import scan

    for label in ("cat", "dog"):
        for i in range(8):
            path = tmp_path / "train" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_encoded("PNG", (9 + i, 8 + len(label) * (label == "cat"))))
    (tmp_path / "train" / "cat" / "evil.png").write_bytes(POSTSCRIPT)
    spec = DataConfig(root=str(tmp_path), train={"train": "train"})
    _, corrupt, warnings = scan(spec, 0)
    assert corrupt == ("train/cat/evil.png",)
    assert "train/cat/evil.png (its format is EPS)" in warnings[0]
    assert not programs
