"""Streams tensors out as a safetensors file: the same tensors give the same bytes, anywhere.

The safetensors library writes to a path or to one block of memory. A checkpoint goes to any store
and is hashed on its way, so the (simple) format is written here, byte for byte as the library does.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from workers.storage.store import Sink

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

    Tensors on a device are copied to the host one at a time; tensors that share memory are each
    written in full.

    Raises:
        ValueError: a tensor has a dtype that safetensors cannot hold.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"tensor {name} has dtype {tensor.dtype}, which safetensors lacks")
    names = sorted(tensors, key=lambda name: (-_RANK[tensors[name].dtype], name.encode()))
    sink.write(_header([(name, tensors[name]) for name in names]))
    for name in names:
        if tensors[name].numel():
            sink.write(_memory(tensors[name]))


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
    text += b" " * (-len(text) % 8)  # so that the data, too, starts at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy where they already lie so."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
