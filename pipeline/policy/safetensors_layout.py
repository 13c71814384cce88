"""Where tensors lie in safetensors files, computed from names, shapes and types before writing.

A safetensors file is a JSON header followed by the bytes of the tensors. So a rank that holds some
rows of a tensor can write them to their place without knowing what other ranks write. The files are
those that safetensors' own writer makes of the same tensors, byte for byte.
"""

import json
import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_FILE_BYTES = 4 << 30
"""Most bytes of tensors in one file of a snapshot. Ranks digest files in parallel, one each."""

_TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _TYPE_NAMES.items()}


class TensorLocation(NamedTuple):
    """Where a whole tensor lies.

    Attributes:
        file: name of the file.
        start: offset in the file at which its bytes begin.
    """

    file: str
    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Return its length."""
        return prod(self.shape) * self.dtype.itemsize


class FileLayout(NamedTuple):
    """Files for some tensors.

    Attributes:
        locations: of each tensor, by its name.
        headers: length and JSON header of each file, by file name.
        sizes: bytes of each file, by file name.
    """

    locations: dict[str, TensorLocation]
    headers: dict[str, bytes]
    sizes: dict[str, int]

    def create(self, folder: Path) -> None:
        """Create the files with their headers and at their final size."""
        for name, header in self.headers.items():
            with (folder / name).open("xb") as file:
                file.write(header)
                file.truncate(self.sizes[name])


def lay_out(
    tensors: Mapping[str, Tensor],
    stem: str,
    metadata: Mapping[str, str] | None = None,
    most: int | None = None,
) -> FileLayout:
    """Lay out tensors in STEM.safetensors, or in several: STEM-00001-of-00002.safetensors.

    Args:
        tensors: only their shapes and types are used.
        metadata: entry `__metadata__` of each file.
        most: most bytes of tensors in a file, unless one tensor is larger; None:
            `MAX_FILE_BYTES`.
    """
    groups = _groups(tensors, most or MAX_FILE_BYTES)
    layout = FileLayout({}, {}, {})
    for number, names in enumerate(groups, start=1):
        part = f"-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
        file = f"{stem}{part}.safetensors"
        header, starts, size = _header({name: tensors[name] for name in names}, metadata)
        layout.headers[file], layout.sizes[file] = header, size
        for name, start in starts.items():
            tensor = tensors[name]
            layout.locations[name] = TensorLocation(file, start, tensor.shape, tensor.dtype)
    return layout


def find_tensors(folder: Path, stem: str) -> dict[str, TensorLocation]:
    """Return where tensors lie in existing files; empty if there are none.

    Raises:
        OSError: a file can't be read.
    """
    paths = tensor_files(folder, stem)
    return {name: location for path in paths for name, location in _locations_in_file(path)}


def tensor_files(folder: Path, stem: str) -> list[Path]:
    """Return the files that `lay_out` may have made for a stem, in order."""
    paths = [*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}-*-of-*.safetensors")]
    return sorted(paths)


def write_at(descriptor: int, start: int, tensor: Tensor) -> None:
    """Write a tensor's bytes at an offset of an open file."""
    data = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    while data:
        written = os.pwrite(descriptor, data, start)
        data, start = data[written:], start + written


def read_at(descriptor: int, start: int, tensor: Tensor) -> None:
    """Fill a tensor, contiguous and on the CPU, from an offset of an open file.

    Raises:
        OSError: the file ends too early.
    """
    data = tensor.view(-1).view(torch.uint8).numpy().data
    while data:
        count = os.preadv(descriptor, [data], start)
        if not count:
            raise OSError("the file ends within a tensor")
        data, start = data[count:], start + count


def _groups(tensors: Mapping[str, Tensor], most: int) -> list[list[str]]:
    """Distribute the names over files, in their order."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        bytes_ = tensor.numel() * tensor.dtype.itemsize
        if groups[-1] and filled + bytes_ > most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += bytes_
    return groups


def _header(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, int], int]:
    """Return a file's header, the offset of each tensor in the file, and the file's size.

    Tensors of wide types come first, so that each is aligned; tensors of equal width by name.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    parts: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets: dict[str, int] = {}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.dtype.itemsize
        offsets[name] = start
        parts[name] = {
            "dtype": _TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {n: len(header) + start for n, start in offsets.items()}, len(header) + end


def _locations_in_file(path: Path) -> Iterator[tuple[str, TensorLocation]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        parts = json.loads(file.read(length))
    for name, part in parts.items():
        if name != "__metadata__":
            start = 8 + length + part["data_offsets"][0]
            shape, dtype = torch.Size(part["shape"]), _DTYPES[part["dtype"]]
            yield name, TensorLocation(path.name, start, shape, dtype)
