"""What is installed, what the machine has, and so what will run where."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from flows.server import server_state

PYTHON = (3, 11)
LITTLE_DISK_GB = 5
LITTLE_MEMORY_GB = 4

Row = tuple[str, str, bool]
"""What was looked at, what was found, and whether that is well."""


def print_report(console: Console, root: Path) -> bool:
    """Print the report; True: nothing stands in the way of a run in `root`."""
    rows = [*machine(root), *packages(), *accelerator(), *engines(), prefect_server(root)]
    table = Table(show_header=False, box=None)
    for name, found, well in rows:
        table.add_row("ok" if well else "[red]!![/red]", name, found)
    console.print(table, highlight=False)
    return all(well for _, _, well in rows)


def machine(root: Path) -> Iterator[Row]:
    """Look at Python, cores, memory, and the disk that holds `root`."""
    yield "python", platform.python_version(), sys.version_info[:2] >= PYTHON
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cores", str(usable), True
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    yield "memory", f"{memory:.1f} GB", memory >= LITTLE_MEMORY_GB
    existing = next(p for p in [root.resolve(), *root.resolve().parents] if p.exists())
    disk = shutil.disk_usage(existing).free / 2**30
    writable = os.access(existing, os.W_OK)
    note = "" if writable else ", not writable"
    yield "disk", f"{disk:.0f} GB free for {root}{note}", writable and disk >= LITTLE_DISK_GB


def packages() -> Iterator[Row]:
    """Compare installed versions with the ones this distribution asks for."""
    try:
        wanted = importlib.metadata.requires("srpo") or []
    except importlib.metadata.PackageNotFoundError:
        yield "srpo", "not installed as a package: versions can't be compared", False
        return
    yield "srpo", importlib.metadata.version("srpo"), True
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield requirement.name, f"missing, expected {requirement.specifier}", False
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        note = "" if fits else f", expected {requirement.specifier}"
        yield requirement.name, f"{found}{note}", fits


def accelerator() -> Iterator[Row]:
    """Look for a GPU, which decides where policies run (`model.device = "auto"`)."""
    import torch

    if not torch.cuda.is_available():
        yield "policy", f"on the CPU, {torch.get_num_threads()} threads (no CUDA device)", True
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GB"
        yield "policy", f"on cuda:{index}, {properties.name}, {memory}", True


def engines() -> Iterator[Row]:
    """Name the sampling engines."""
    yield "engine", "transformers, in the process of the run", True
    there = importlib.util.find_spec("vllm") is not None
    yield "engine", f"vllm is {'installed' if there else 'not installed (optional)'}", True


def prefect_server(root: Path) -> Row:
    """Tell which Prefect API a run in `root` would talk to."""
    state = server_state(root)
    if state.own and not state.alive:
        return "prefect", "a server of our own, started with the next run and ended with it", True
    whose = "our own, with the runs" if state.own else "PREFECT_API_URL"
    note = "" if state.alive else ", which does not answer"
    return "prefect", f"{state.url} ({whose}){note}", state.alive
