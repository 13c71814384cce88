"""Tensors that ranks hold together, to and from safetensors files, by torch.distributed.checkpoint.

Its planners find out which rank holds which rows of which tensor, see to it that all of every
tensor is written, and once, and tell every rank of an error of any. Files are ours: a rank writes
its rows to their place in a safetensors file, and reads them from there, so files are the same
whatever the number of ranks, and nobody ever holds more than its rows. torch's own writers would
leave a file per rank, and a pickle.
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
from pipeline.policy.safetensors_layout import FileLayout, TensorLocation, read_at, write_at


class RankError(SrpoError):
    """Raised on all ranks when a collective save or load failed on one of them."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause


@contextmanager
def unwrap_rank_errors() -> Iterator[None]:
    """Raise the error of the rank that failed, in place of `RankError`."""
    try:
        yield
    except RankError as error:
        raise error.cause from None


def save(
    tensors: Mapping[str, Tensor], layout: FileLayout, folder: Path, durable: bool = True
) -> None:
    """Write tensors into files that are not there yet; every rank must call it.

    Args:
        tensors: whole tensors, or this rank's parts of them (DTensors).
        layout: location and stored type of each; the same on every rank.
        durable: fsync the files.

    Raises:
        OSError: a file can't be written.
        RankError: the same, with several ranks.
    """
    with _raise_first_cause():
        save_parts(
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_writer=_Writer(layout, folder, durable),
            process_group=ranks.control(),
            no_dist=ranks.size() == 1,
        )


def load(
    tensors: Mapping[str, Tensor], locations: Mapping[str, TensorLocation], folder: Path
) -> None:
    """Fill tensors, or this rank's parts of them, from files; every rank must call it.

    Raises:
        OSError: a file can't be read.
        RuntimeError: a tensor is missing.
        ValueError: a tensor has another shape.
        RankError: one of these, with several ranks.
    """
    with _raise_first_cause():
        load_parts(
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_reader=_Reader(locations, folder),
            process_group=ranks.control(),
            no_dist=ranks.size() == 1,
        )


class _Writer(StorageWriter):
    """Writes rows to their place in the files."""

    def __init__(self, layout: FileLayout, folder: Path, durable: bool) -> None:
        self._layout, self._folder, self._durable = layout, folder, durable

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: no state is kept between saves."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Create the files, on rank 0, before any rank writes."""
        self._layout.create(self._folder)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's rows, tensor by tensor."""
        results = []
        with ExitStack() as stack:
            opened: dict[str, Any] = {}
            for item in plan.items:
                location = self._layout.locations[item.index.fqn]
                if location.file not in opened:
                    opened[location.file] = stack.enter_context(
                        (self._folder / location.file).open("r+b")
                    )
                part = planner.resolve_data(item)
                assert isinstance(part, Tensor) and item.tensor_data is not None
                chunk = item.tensor_data.chunk
                start = _start(location, chunk.offsets, chunk.sizes)
                write_at(opened[location.file].fileno(), start, part.to(location.dtype))
                results.append(WriteResult(item.index, part.nbytes, None))
            for file in opened.values() if self._durable else ():
                os.fsync(file.fileno())
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Nothing: only tensors are written."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Return False: the folder is an argument of the writer, not a checkpoint id."""
        return False


class _Reader(StorageReader):
    """Reads rows from their place in the files."""

    def __init__(self, locations: Mapping[str, TensorLocation], folder: Path) -> None:
        self._locations, self._folder = locations, folder

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: no state is kept between loads."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Describe each stored tensor as one chunk."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(location.dtype),
                    location.shape,
                    [ChunkStorageMetadata(torch.Size([0] * len(location.shape)), location.shape)],
                )
                for name, location in self._locations.items()
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
            location = self._locations[item.storage_index.fqn]
            target = planner.resolve_tensor(item)
            start = _start(location, item.storage_offsets, item.lengths)
            in_place = target.device.type == "cpu" and target.dtype == location.dtype
            part = target if in_place else torch.empty(item.lengths, dtype=location.dtype)
            with (self._folder / location.file).open("rb") as file:
                read_at(file.fileno(), start, part)
            if not in_place:
                target.copy_(part)
            planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Return False: the folder is an argument of the reader, not a checkpoint id."""
        return False


def _start(location: TensorLocation, offsets: torch.Size, sizes: torch.Size) -> int:
    """Return the offset in the file at which some rows of a tensor begin.

    Raises:
        ValueError: they are not whole rows; only whole rows are contiguous in the file.
    """
    if any(offsets[1:]) or sizes[1:] != location.shape[1:]:
        raise ValueError(
            f"{list(sizes)} of {list(location.shape)} at {list(offsets)}: no whole rows"
        )
    row = prod(location.shape[1:]) * location.dtype.itemsize
    return location.start + (offsets[0] * row if offsets else 0)


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


@contextmanager
def _raise_first_cause() -> Iterator[None]:
    """Raise the error of the first rank that failed, and silence torch's single-process warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except CheckpointException as error:
            cause, _ = error.failures[min(error.failures)]
            raise (cause if ranks.size() == 1 else RankError(cause)) from None
