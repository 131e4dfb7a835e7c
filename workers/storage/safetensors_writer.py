"""Tensors as a stream of bytes in the safetensors format. Equal tensors give equal bytes.

The safetensors library writes to a path or to one block of memory. A checkpoint is written to any
store and hashed at the same time, so the format is written here, byte for byte as the library does.
"""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from workers.storage.store import Bytes, Sink

# In the library's order: larger alignments come first, then names.
_DTYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_RANK = {dtype: rank for rank, dtype in enumerate(_DTYPES)}


def write_tensors(sink: Sink, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file whose metadata is exactly {"format": "pt"}.

    Tensors on a device are copied to the host one at a time. Tensors that share memory are all
    written in full.

    Raises:
        ValueError: a tensor has a dtype that safetensors cannot hold.
    """
    in_file_order = _in_file_order(tensors)
    sink.write(_header(in_file_order))
    for _, tensor in in_file_order:
        if tensor.numel():
            sink.write(_memory(tensor))


def file_size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the file that `write_tensors` writes; no tensor is read."""
    data = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return len(_header(_in_file_order(tensors))) + data


class HashingSink:
    """Counts and hashes the bytes written to it, and passes them on to `sink` if there is one."""

    PIECE = 1 << 20
    """Bytes hashed and passed on at a time; a piece stays in the processor's cache."""

    def __init__(self, sink: Sink | None = None) -> None:
        self.sink, self.size, self.sha256 = sink, 0, hashlib.sha256()

    def write(self, data: Bytes, /) -> None:
        view = memoryview(data)
        for start in range(0, len(view), self.PIECE):
            piece = view[start : start + self.PIECE]
            self.sha256.update(piece)
            if self.sink is not None:
                self.sink.write(piece)
        self.size += len(view)


def _in_file_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """(name, tensor) in the order of the safetensors library: larger alignments first, then names.

    Raises:
        ValueError: a tensor has a dtype that safetensors cannot hold.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"tensor {name} has dtype {tensor.dtype}, which safetensors lacks")
    return sorted(tensors.items(), key=lambda item: (-_RANK[item[1].dtype], item[0].encode()))


def _header(tensors: list[tuple[str, Tensor]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors:
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data also starts at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy if it is contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
