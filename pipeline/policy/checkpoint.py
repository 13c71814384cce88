"""Tensors that ranks hold together, to and from safetensors files, by torch.distributed.checkpoint.

Its planners find out which rank holds which rows of which tensor, see to it that all of every
tensor is written, and once, and tell every rank of an error of any. Files are ours: a rank writes
its rows in their place (`tensorfiles`), and reads them from there, so files are the same whatever
the number of ranks, and nobody ever holds more than its rows. torch's own writers would leave a
file per rank, and a pickle.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from pipeline.distributed import ranks
from pipeline.errors import SrpoError
from pipeline.policy.safetensors_layout import FileLayout, Place, read_at, write_at


class RankError(SrpoError):
    """What a rank raised, on all of them, which are done with the work and hear of nothing else."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause


@contextmanager
def causes() -> Iterator[None]:
    """Raise, on rank 0, what a rank raised in work done together."""
    try:
        yield
    except RankError as error:
        raise error.cause from None


def save(
    tensors: Mapping[str, Tensor], layout: FileLayout, folder: Path, durable: bool = True
) -> None:
    """Write tensors into files that are not there yet; every rank must call it.

    Args:
        tensors: whole ones, or this rank's parts of them (DTensors).
        layout: where each of them lies, and of which type it is there; the same on every rank.
        durable: bring them to the disk.

    Raises:
        OSError: it can't be written.
        RankError: the same, where there are several ranks.
    """
    with _plainly():
        save_parts(
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_writer=_Writer(layout, folder, durable),
            process_group=ranks.control(),
            no_dist=ranks.size() == 1,
        )


def load(tensors: Mapping[str, Tensor], places: Mapping[str, Place], folder: Path) -> None:
    """Fill tensors, or this rank's parts of them, from files; every rank must call it.

    Raises:
        OSError: a file can't be read.
        RuntimeError: a tensor is missing.
        ValueError: a tensor has another shape.
        RankError: one of these, where there are several ranks.
    """
    with _plainly():
        load_parts(
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_reader=_Reader(places, folder),
            process_group=ranks.control(),
            no_dist=ranks.size() == 1,
        )


class _Writer(StorageWriter):
    """Writes rows in their place."""

    def __init__(self, layout: FileLayout, folder: Path, durable: bool) -> None:
        self._layout, self._folder, self._durable = layout, folder, durable

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one save to another."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the files, on rank 0, before anybody writes."""
        self._layout.create(self._folder)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's rows, tensor by tensor."""
        results = []
        with ExitStack() as stack:
            opened: dict[str, Any] = {}
            for item in plan.items:
                place = self._layout.places[item.index.fqn]
                if place.file not in opened:
                    opened[place.file] = stack.enter_context(
                        (self._folder / place.file).open("r+b")
                    )
                part = planner.resolve_data(item)
                assert isinstance(part, Tensor) and item.tensor_data is not None
                chunk = item.tensor_data.chunk
                start = _start(place, chunk.offsets, chunk.sizes)
                write_at(opened[place.file].fileno(), start, part.to(place.dtype))
                results.append(WriteResult(item.index, part.nbytes, None))
            for file in opened.values() if self._durable else ():
                os.fsync(file.fileno())
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Nothing but tensors is written."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Accept no names: folders are given when a writer is made."""
        return False


class _Reader(StorageReader):
    """Reads rows from their place."""

    def __init__(self, places: Mapping[str, Place], folder: Path) -> None:
        self._places, self._folder = places, folder

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one load to another."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Say of each tensor that it is one piece."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(place.dtype),
                    place.shape,
                    [ChunkStorageMetadata(torch.Size([0] * len(place.shape)), place.shape)],
                )
                for name, place in self._places.items()
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to add."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read this rank's rows, tensor by tensor."""
        for item in plan.items:
            place = self._places[item.storage_index.fqn]
            target = planner.resolve_tensor(item)
            start = _start(place, item.storage_offsets, item.lengths)
            there = target.device.type == "cpu" and target.dtype == place.dtype
            part = target if there else torch.empty(item.lengths, dtype=place.dtype)
            with (self._folder / place.file).open("rb") as file:
                read_at(file.fileno(), start, part)
            if not there:
                target.copy_(part)
            planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Accept no names: folders are given when a reader is made."""
        return False


def _start(place: Place, offsets: torch.Size, sizes: torch.Size) -> int:
    """Return the byte of the file at which some rows of a tensor begin.

    Raises:
        ValueError: they are not whole rows, which alone lie together.
    """
    if any(offsets[1:]) or sizes[1:] != place.shape[1:]:
        raise ValueError(f"{list(sizes)} of {list(place.shape)} at {list(offsets)}: no whole rows")
    row = prod(place.shape[1:]) * place.dtype.itemsize
    return place.start + (offsets[0] * row if offsets else 0)


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


@contextmanager
def _plainly() -> Iterator[None]:
    """Raise what went wrong on the first rank; say nothing of there being one process alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except CheckpointException as error:
            cause, _ = error.failures[min(error.failures)]
            raise (cause if ranks.size() == 1 else RankError(cause)) from None
