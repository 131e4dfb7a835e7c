"""Class folders packed into tar shards and Parquet files, for tests."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from webdataset import TarWriter


def list_images(folder: Path) -> list[tuple[str, str, bytes]]:
    """(class, stem, content) of every image in class folders, sorted."""
    return [(f.parent.name, f.stem, f.read_bytes()) for f in sorted(folder.rglob("*.png"))]


def write_shards(folder: Path, shards: list[Path], label: str = "cls") -> tuple[str, ...]:
    """Write images to the shards in turn, with keys `class/stem` and numbers as labels."""
    images = list_images(folder)
    classes = sorted({name for name, _, _ in images})
    for k, shard in enumerate(shards):
        shard.parent.mkdir(parents=True, exist_ok=True)
        with TarWriter(str(shard)) as tar:
            for name, stem, content in images[k :: len(shards)]:
                number = classes.index(name)
                value = number if label == "cls" else {"label": number, "size": 3}
                tar.write({"__key__": f"{name}/{stem}", "png": content, label: value})
    return tuple(classes)


def write_parquet(
    folder: Path, path: Path, names: bool = False, hub: bool = False, group: int = 7
) -> None:
    """Write a row per image. `hub`: with columns and metadata of Hugging Face's datasets."""
    images = list_images(folder)
    classes = sorted({name for name, _, _ in images})
    content = [{"bytes": data, "path": f"{stem}.png"} if hub else data for _, stem, data in images]
    labels = [name if names else classes.index(name) for name, _, _ in images]
    table = pa.table({"image": content, "label": labels})
    if hub:
        feature = {"names": classes, "_type": "ClassLabel"}
        info = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)


def write_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> None:
    """Write a tar of exactly these members."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
