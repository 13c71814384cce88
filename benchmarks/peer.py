"""TRL, the peer: an environment of its own, the fixtures, and one process per measurement.

Its scripts (make_fixture.py, bench_trl.py) are not part of this project; they are run in
place, with LoRA behind `trl_lora.py`. Environment and fixtures go to a cache folder outside the
checkout.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_PEER = ROOT.parent / "shared" / "bench" / "trl_peer"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "srpo-benchmarks"
REQUIREMENTS = (
    ("torch==2.13.0",),
    ("trl==1.16.0", "transformers", "datasets", "accelerate", "peft"),
)
"""One pip command each; torch first, so that what follows pulls no other build of it."""

CORRECT = "0,1,2,3,4,5,7,8"
SCRIPTS = ("make_fixture.py", "bench_trl.py")
_WITH_LORA = Path(__file__).with_name("trl_lora.py")


class Settings(NamedTuple):
    """Settings of one process of TRL's trainer; prompt and response are lengths in tokens."""

    trainer: str
    size: str
    prompt: int
    response: int
    canned: bool
    micro: int
    bfloat16: bool
    lora: bool


class Plan(NamedTuple):
    """How much is measured: processes of each side, their steps, and their threads."""

    rounds: int
    steps: int
    warmup: int
    threads: int


class Peer:
    """The peer's scripts and the environment that they run in."""

    def __init__(self, folder: Path, cache: Path, python: Path | None) -> None:
        self._folder, self._cache = folder, cache
        self._python = python

    def missing(self) -> str | None:
        """Say what is not there, if so."""
        absent = [name for name in SCRIPTS if not (self._folder / name).exists()]
        if absent:
            return f"no {' and no '.join(absent)} in {self._folder}: name its folder by --peer"
        if self._python is not None and not self._python.exists():
            return f"no Python at {self._python}, named by --peer-python"
        return None

    def fixture(self, size: str, prompt: int, response: int) -> Path:
        """Return the folder of a fixture, made by the peer's script if it is missing."""
        parent = self._cache / "fixtures" / f"prompt-{prompt}-response-{response}"
        if not (parent / size / "meta.json").exists():
            print(f"making fixture {size}: prompts of {prompt}, responses of {response} tokens")
            self._run(
                "make_fixture.py",
                *("--size", size, "--out", str(parent), "--prompt-tokens", str(prompt)),
                *("--completion-tokens", str(response), "--correct", CORRECT),
            )
        return parent / size

    def measure(self, settings: Settings, plan: Plan) -> dict[str, Any]:
        """Run TRL's trainer in a fresh process and return its figures."""
        fixtures = self.fixture(settings.size, settings.prompt, settings.response).parent
        options = {
            "trainer": settings.trainer,
            "size": settings.size,
            "steps": plan.steps,
            "warmup": plan.warmup,
            "micro": settings.micro,
            "canned": int(settings.canned),
            "bf16": int(settings.bfloat16),
            "threads": plan.threads,
            "fixtures": fixtures,
            "out": self._cache / "trl-out",
        }
        given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        before = [str(_WITH_LORA)] if settings.lora else []
        printed = self._run("bench_trl.py", *given, before=before, threads=plan.threads)
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return found

    def _run(
        self,
        script: str,
        *arguments: str,
        before: Sequence[str] = (),
        threads: int | None = None,
    ) -> str:
        command = [str(self._interpreter()), *before, str(self._folder / script), *arguments]
        return run(command, threads)

    def _interpreter(self) -> Path:
        """Return the environment's Python, made on first use; takes minutes and 2 GB."""
        if self._python is None:
            folder = self._cache / "trl"
            python, ready = folder / "bin" / "python", folder / ".ready"
            if not ready.exists():
                print(f"making an environment for TRL in {folder}")
                run([sys.executable, "-m", "venv", "--clear", str(folder)])
                for packages in REQUIREMENTS:
                    run([str(python), "-m", "pip", "install", "--quiet", *packages])
                ready.touch()
            self._python = python
        return self._python


def run(command: list[str], threads: int | None = None) -> str:
    """Run a command and return what it prints.

    Raises:
        RuntimeError: it fails; the message holds the end of its output.
    """
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout
