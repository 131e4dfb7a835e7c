"""Hostile inputs, made from seeds, and their way through the real entry points.

    seed -> one of KINDS -> a valid document, file or folder -> changed -> entry point
         -> "accepted" | "refused"; anything else is a fault of the program

Allowed refusals are one sentence for the user (UserError), a damaged file of the store
(CorruptFile), and exit code 2 of the command line.
"""

import contextlib
import io
import json
import random
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from orchestrator import cli, config
from orchestrator.commands.run import planned
from orchestrator.driver.ledger import Ledger
from tests.faults.hostile_values import (
    BASE_CONFIG,
    HOSTILE_NUMBERS,
    HOSTILE_TEXTS,
    HOSTILE_VALUES,
    changed_bytes,
    changed_tree,
    hostile_document,
)
from tests.simulator.simulator import live
from tests.simulator.world import World
from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.config.train import TrainConfig
from workers.data import scan
from workers.data.decode import decoding_fault
from workers.errors import UserError
from workers.models.build import create_model, timm_config
from workers.serving import predict
from workers.storage import manifest
from workers.storage.store import CorruptFile, Store
from workers.training.import_weights import fitting_weights

REFUSALS = (UserError, CorruptFile)
TIME_LIMIT_S = 30.0
"""Time for one input; the slowest, a plan on a busy machine, take a few seconds."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "EPS", "PPM", "ICO", "TGA", "PDF", "MPO")
"""Formats that Pillow can write, of which only some are decoded."""
FOREIGN = (b"%!PS\n{} loop\n", b"\xc5\xd0\xd3\xc6", b"SIMPLE  =  T", b"%PDF-1.7")
"""Beginnings of files that another program would be asked to read."""


class TookTooLong(BaseException):
    """An input took longer than TIME_LIMIT_S."""


@contextlib.contextmanager
def time_limit(seconds: float = TIME_LIMIT_S) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TookTooLong(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def try_input(kind: str, seed: int, folder: Path) -> str:
    """`accepted` or `refused`. Any other outcome raises."""
    rng = random.Random(f"{kind} {seed}")
    with time_limit():
        try:
            KINDS[kind](rng, folder)
        except REFUSALS as error:
            assert str(error) and (isinstance(error, CorruptFile) or len(str(error)) < 4000)
            return "refused"
    return "accepted"


# Kinds


def try_config(rng: random.Random, folder: Path) -> None:
    tree = _whole_config()
    for _ in range(rng.randint(1, 3)):
        tree = changed_tree(rng, tree)
    text = hostile_document(rng)
    if rng.random() < 0.7:
        text = yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5)
    content = text.encode(errors="surrogatepass")
    if rng.random() < 0.3:
        content = changed_bytes(rng, content)
    file = folder / "x.yaml"
    file.write_bytes(content)
    _expanded(file, [])


def try_override(rng: random.Random, folder: Path) -> None:
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump(BASE_CONFIG))
    paths = [f"{section}.{key}" for section in BASE_CONFIG for key in _keys(section)]
    values = [*HOSTILE_NUMBERS, *HOSTILE_NUMBERS, *HOSTILE_VALUES, hostile_document(rng)]
    overrides = [f"{rng.choice(paths)}={rng.choice(values)}" for _ in range(rng.randint(1, 2))]
    _expanded(file, overrides)


def _keys(section: str) -> list[str]:
    annotation = config.Experiment.model_fields[section].annotation
    return sorted(getattr(annotation, "model_fields", {"x": None}))


@cache
def _whole_config() -> dict[str, Any]:
    """The base configuration with all defaults."""
    tree = config.Experiment.model_validate(BASE_CONFIG).model_dump(mode="json")
    tree["sweep"]["space"] = BASE_CONFIG["sweep"]["space"]
    return tree


def _expanded(file: Path, overrides: list[str]) -> None:
    experiment = config.load(file, overrides)
    assert config.read(config.public_dump(experiment), "dump").model == experiment.model
    if experiment.sweep.num_runs is None or experiment.sweep.num_runs < 1000:
        planned(experiment)


def try_plan(rng: random.Random, folder: Path) -> None:
    """The whole verb, preflight and timing included, of a configuration that is nearly valid."""
    images = _folder_of_images(folder / "data", rng)
    tree = _whole_config() | {"storage": str(folder / "runs"), "merge": {"mode": "off"}}
    tree |= {"data": {"root": str(images), "image_size": 32}, "sweep": {"seeds": 2}}
    section = rng.choice(("data", "model", "base", "train", "train", "soup", "fleet", "sweep"))
    changed = {**tree, section: changed_tree(rng, tree[section])}
    file = folder / "x.yaml"
    file.write_bytes(yaml.safe_dump(changed).encode())
    command(["plan", str(file)])


def try_path(rng: random.Random, folder: Path) -> None:
    """A place that a verb is pointed at."""
    place = rng.choice(HOSTILE_TEXTS).replace("\0", "").encode(errors="replace").decode()
    place = rng.choice((place, f"{folder}/{place}", f"{place}/x", f"s3://{place}", f"~{place}"))
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump(BASE_CONFIG))
    verbs = [
        ["status", place],
        ["report", place],
        ["verify", place],
        ["finish", place],
        ["logs", place, "r"],
        ["evaluate", place, "--data", str(folder)],
        ["evaluate", str(served_model()), "--data", place],
        ["predict", place, str(folder), "--out", str(folder / "o.csv")],
        ["predict", str(served_model()), place, "--out", str(folder / "o.csv")],
        ["predict", str(served_model()), str(file), "--out", f"{folder}/o/{place}"],
        ["run", place],
        ["plan", str(file), f"data.root={place}", "data.source=folder"],
        ["plan", str(file), "data.source=webdataset", f"data.root={folder}", f"data.train={place}"],
        ["run", str(file), "--address", f"{place}:x"],
        ["submit", str(file), "--address", f"http://{place}:1x"],
        ["soup", place, "--model", "test_resnet", "--data", str(folder), "--recipe", "best"],
    ]
    verb = rng.choice(verbs)
    command(verb + (["--out", str(folder / "soup")] if verb[0] == "soup" else []))


def command(arguments: list[str]) -> None:
    """The command line in this process. Exit code 2 is a refusal, 0 is not."""
    output = io.StringIO()
    before, sys.argv = sys.argv, ["soupfleet", *arguments]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            cli.main()
    except SystemExit as end:
        assert end.code in (0, 2, None), f"exit code {end.code}: {output.getvalue()[-2000:]}"
        assert "\x1b[31m" not in output.getvalue()
        if end.code == 2:
            raise UserError(output.getvalue().strip() or "no sentence") from None
    finally:
        sys.argv = before


def try_image(rng: random.Random, folder: Path) -> None:
    fault = decoding_fault(hostile_image(rng))
    if fault is not None:
        raise UserError(fault)


def try_prediction(rng: random.Random, folder: Path) -> None:
    images = folder / "images"
    images.mkdir()
    name = rng.choice(("a.png", "b.jpg", "=1+1.gif", "\x1b[31m.tiff", "\udcff.webp"))
    (images / name).write_bytes(hostile_image(rng))
    Image.new("RGB", (9, 9)).save(images / "good.png")
    out = folder / "out.csv"
    files = predict.images_below(images)
    broken = predict.write_csv(predict.by_model(served_model(), files), files, images, out)
    text = out.read_text()
    assert "\x1b" not in text and "\n=" not in text
    if broken:
        raise UserError("an image does not decode")


def hostile_image(rng: random.Random) -> bytes:
    kind = rng.choice(FORMATS)
    content = encoded(kind, rng.choice(("RGB", "L", "P")))
    if rng.random() < 0.8:
        content = changed_bytes(rng, content)
    if rng.random() < 0.1:
        content = rng.choice(
            (b"%!PS\n{} loop\n", b"\xc5\xd0\xd3\xc6", b"SIMPLE  =  T", b"%PDF-1.7")
        )
    return content


@cache
def encoded(kind: str, mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 31, 3), dtype=np.uint8)
    image, content = Image.fromarray(pixels).convert(mode), io.BytesIO()
    try:
        image.save(content, kind)
    except (OSError, ValueError):  # a mode that the format does not have
        image.convert("RGB").save(content, kind)
    return content.getvalue()


@cache
def served_model() -> Path:
    """A folder that `predict` and `evaluate` take; it lasts as long as the process."""
    import tempfile

    labels, data = ("=cmd", "bee", "\x1b[31mcow"), DataConfig(image_size=32)
    folder = Path(tempfile.mkdtemp(prefix="soupfleet-served-"))
    spec = ModelConfig(name="test_resnet")
    model = create_model(spec, len(labels), data)
    (folder / "config.json").write_text(json.dumps(timm_config(model, spec, labels, data)))
    (folder / "model.safetensors").write_bytes(save(model.state_dict(), {"format": "pt"}))
    return folder


def _folder_of_images(root: Path, rng: random.Random) -> Path:
    for label in ("ant", rng.choice(("bee", "=cmd", "<b>", "\x1b[31m", "a" * 200))):
        for i in range(12):
            path = root / "train" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8 + i, 9), (i, len(label), 3)).save(path)
    (root / "train" / "ant" / "z.png").write_bytes(hostile_image(rng))
    return root / "train"


def try_shard(rng: random.Random, folder: Path) -> None:
    content = io.BytesIO()
    names = [f"{i:03d}" for i in range(8)]
    if rng.random() < 0.5:
        names[3] = rng.choice(HOSTILE_TEXTS).replace("\0", "") or "x"
    with tarfile.open(fileobj=content, mode="w", format=rng.choice((0, 1, 2))) as tar:
        for i, name in enumerate(names):
            label = _hostile_label(rng) if rng.random() < 0.1 else b"%d" % (i % 2)
            picture = (
                hostile_image(rng) if rng.random() < 0.2 else encoded("PNG", "RGB") + b"%d" % i
            )
            for suffix, data in (("png", picture), (rng.choice(("cls", "json")), label)):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                member.mtime = rng.choice((0, 2**40))
                with contextlib.suppress(ValueError, UnicodeEncodeError):
                    tar.addfile(member, io.BytesIO(data))
    data = content.getvalue()
    if rng.random() < 0.5:
        data = changed_bytes(rng, data) if rng.random() < 0.5 else _changed_header(rng, data)
    (folder / "a.tar").write_bytes(data)
    scan(DataConfig(source="webdataset", root=str(folder), train={"a": "a.tar"}), 0)


def _hostile_label(rng: random.Random) -> bytes:
    labels = ("9" * 5000, "[" * 5000, "x" * 20000, "\x1b[31m", "-1", "", '{"label": 1e400}', "=1")
    return rng.choice((*(label.encode() for label in labels), b"\xff\xfe"))


def _changed_header(rng: random.Random, data: bytes) -> bytes:
    """A tar whose first header is changed and has the right checksum."""
    header = bytearray(data[:512])
    field = rng.choice((slice(0, 100), slice(124, 136), slice(136, 148), slice(156, 157)))
    length = field.stop - field.start
    value = rng.choice((b"\xff" * length, b"\x80" + rng.randbytes(length - 1), b"7" * length))
    header[field] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def try_parquet(rng: random.Random, folder: Path) -> None:
    pictures = [encoded("PNG", "RGB") + b"%d" % i for i in range(8)]
    if rng.random() < 0.3:
        pictures[2] = hostile_image(rng)
    names = ("=cmd", "\x1b[31m", "bee", "ant")
    labels: list[Any] = [
        i % 2 if rng.random() < 0.9 else rng.randrange(-5, 10**9) for i in range(8)
    ]
    if rng.random() < 0.3:
        labels = [rng.choice(names) for _ in range(8)]
    columns = [pa.array(pictures, pa.binary()), pa.array(labels)]
    header = ["image", "label"]
    if rng.random() < 0.2:
        columns.append(rng.choice(columns))
        header.append(rng.choice(("image", "label", "x")))
    table = pa.Table.from_arrays(columns, header)
    if rng.random() < 0.4:
        hub = rng.choice(("[" * 5000, "{}", '{"info": []}', '{"info": {"features": {"label": 1}}}'))
        table = table.replace_schema_metadata({"huggingface": hub})
    content = io.BytesIO()
    pq.write_table(table, content, row_group_size=3)
    data = content.getvalue()
    if rng.random() < 0.6:
        data = changed_bytes(rng, data)
    (folder / "a.parquet").write_bytes(data)
    scan(DataConfig(source="parquet", root=str(folder), train={"a": "a.parquet"}), 0)


def try_checkpoint(rng: random.Random, folder: Path) -> None:
    """Weights that a run imports: a safetensors header is changed, or a torch file's bytes."""
    model = _model()
    if rng.random() < 0.7:
        content = save(model.state_dict(), {"format": "pt"})
        data, suffix = _changed_safetensors(rng, content), "safetensors"
    else:
        buffer = io.BytesIO()
        torch.save({"state_dict": model.state_dict()}, buffer)
        data, suffix = changed_bytes(rng, buffer.getvalue()), rng.choice(("pth", "bin", "pt"))
    file = folder / f"w.{suffix}"
    file.write_bytes(data)
    fitting_weights(model, TrainConfig(weights=str(file), weights_ema=rng.random() < 0.2))


@cache
def _model() -> torch.nn.Module:
    return create_model(ModelConfig(name="test_resnet"), 3, DataConfig(image_size=32))


def _changed_safetensors(rng: random.Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.3:
        return changed_bytes(rng, content)
    if rng.random() < 0.3:
        header = changed_bytes(rng, header)
    else:
        header = json.dumps(changed_tree(rng, json.loads(header))).encode()
    length = rng.choice((len(header), len(header), len(header), 2**62, 0, len(header) - 1))
    return length.to_bytes(8, "little") + header + body


@cache
def _world() -> dict[str, bytes]:
    """All files of a finished simulated experiment."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        world = World.at(Path(folder))
        live(world)
        return {path: world.store.read(path) for path in world.store.list()}


def _changed_store(rng: random.Random, folder: Path, path: str) -> Store:
    for name, content in _world().items():
        if name == path:
            lines = content.splitlines(keepends=True)
            at = rng.randrange(len(lines))
            line = lines[at]
            if rng.random() < 0.5 and line.startswith(b"{"):
                with contextlib.suppress(ValueError):
                    line = json.dumps(changed_tree(rng, json.loads(line))).encode() + b"\n"
            else:
                line = changed_bytes(rng, line)
            content = b"".join([*lines[:at], line, *lines[at + 1 :]])
        file = folder / "store" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return Store(str(folder / "store"))


def try_ledger(rng: random.Random, folder: Path) -> None:
    path = rng.choice([path for path in _world() if path.startswith("ledger/")])
    Ledger(_changed_store(rng, folder, path)).replay()


def try_manifest(rng: random.Random, folder: Path) -> None:
    path = rng.choice([path for path in _world() if path.endswith("/manifest.json")])
    store = _changed_store(rng, folder, path)
    kind, owner, *_ = path.split("/")
    manifest.complete(store, owner, 1)
    ids = {
        "base": f"base/{owner}",
        "soups": f"soup/{owner}",
        "runs": f"{owner}/{path.split(chr(47))[-2]}",
    }
    manifest.verify_files(store, ids[kind])


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    "config": try_config,
    "override": try_override,
    "path": try_path,
    "plan": try_plan,
    "image": try_image,
    "prediction": try_prediction,
    "shard": try_shard,
    "parquet": try_parquet,
    "checkpoint": try_checkpoint,
    "manifest": try_manifest,
    "ledger": try_ledger,
}
"""Name of a kind -> makes an input of it and takes it through its entry point."""
