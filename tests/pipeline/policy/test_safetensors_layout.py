"""Files of tensors: those of safetensors' own writer, to the byte, in parts of a bounded size."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.policy import checkpoint
from pipeline.policy.safetensors_layout import find_tensors, lay_out

TENSORS = {
    "b": torch.arange(15, dtype=torch.float32).view(3, 5),
    'a "quoted" name, an é': torch.arange(7, dtype=torch.float32),
    "step": torch.tensor(2.0),
    "ids": torch.arange(4),
    "half": torch.ones(3, 3, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_bytes_are_those_of_safetensors(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    save_file(TENSORS, theirs / "all.safetensors", metadata)
    checkpoint.save(TENSORS, lay_out(TENSORS, "all", metadata), ours)
    assert files(ours) == files(theirs)


def test_large_files_are_parted(tmp_path: Path) -> None:
    """60 bytes, 28, 4, 32, 18 and none: a file takes 64, or one tensor."""
    layout = lay_out(TENSORS, "all", most=64)
    assert list(layout.sizes) == [f"all-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    checkpoint.save(TENSORS, layout, tmp_path)
    found = [load_file(tmp_path / name) for name in layout.sizes]
    assert [set(part) for part in found] == [
        {"b"},
        {'a "quoted" name, an é', "step", "ids"},
        {"half", "none"},
    ]
    assert find_tensors(tmp_path, "all") == layout.locations
    assert find_tensors(tmp_path, "al") == {}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    checkpoint.save(TENSORS, lay_out(TENSORS, "all", most=64), tmp_path)
    read = {name: torch.full_like(tensor, 1) for name, tensor in TENSORS.items()}
    checkpoint.load(read, find_tensors(tmp_path, "all"), tmp_path)
    assert all(read[name].equal(tensor) for name, tensor in TENSORS.items())


def test_another_type_is_converted(tmp_path: Path) -> None:
    checkpoint.save(TENSORS, lay_out(TENSORS, "all"), tmp_path)
    read = {"half": torch.zeros(3, 3)}
    checkpoint.load(read, find_tensors(tmp_path, "all"), tmp_path)
    assert read["half"].equal(torch.ones(3, 3))
    wanted = {"half": torch.empty(3, 3, dtype=torch.float64, device="meta")}
    checkpoint.save(read, lay_out(wanted, "written"), tmp_path, durable=False)
    assert load_file(tmp_path / "written.safetensors")["half"].equal(torch.ones(3, 3).double())


def test_what_can_not_be_read_is_said(tmp_path: Path) -> None:
    checkpoint.save(TENSORS, lay_out(TENSORS, "all"), tmp_path)
    locations = find_tensors(tmp_path, "all")
    with pytest.raises(RuntimeError, match="Missing key in checkpoint state_dict: other"):
        checkpoint.load({"other": torch.zeros(1)}, locations, tmp_path)
    with pytest.raises(ValueError, match="Size mismatch"):
        checkpoint.load({"b": torch.zeros(3, 4)}, locations, tmp_path)
    (tmp_path / "all.safetensors").write_bytes(b"")
    with pytest.raises(OSError, match="ends within a tensor"):
        checkpoint.load({"b": torch.zeros(3, 5)}, locations, tmp_path)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    layout = lay_out(TENSORS, "all")
    checkpoint.save(TENSORS, layout, tmp_path)
    with pytest.raises(FileExistsError):
        checkpoint.save(TENSORS, layout, tmp_path)
