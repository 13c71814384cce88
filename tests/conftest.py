"""Fixtures shared by all tests: policies small enough to be opened in milliseconds.

    tiny_folder     path of a Hugging Face folder: a random Qwen3 of 1 layer, V = 100 (read only!)
    tiny_policy     factory of fresh policies over it: tiny_policy(teacher="ema", rate=0.5, …)
    demo_policy     factory of fresh policies over the shipped demo policy, same arguments
    smollm2         the folder of SmolLM2-135M-Instruct, in this user's cache (read only!)
    prefect_api     environment of commands that talk to the one Prefect server that tests share
    api_here        the same, for this process as well
    srpo            srpo("train", "demo", …): a command in this process, its exit code and words
    own_server      own_server(root): have a server of `root` come up sooner than from nothing

A policy that a test got is its own: change it freely.
"""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from flows import cli
from flows.prefect_api.server import CLIENT_SETTINGS
from pipeline.config.sections import TeacherKind
from pipeline.policy.model_folder import SMOLLM2, gguf_file, model_folder
from pipeline.policy.policy import Policy, TeacherSettings
from tests.builders.policies import PRINTABLE, open_on_cpu, write_tiny_policy
from tests.paths import PROJECT
from tests.prefect_servers import leave_former, prepared, shared

OpenPolicy = Callable[..., Policy]
OwnServer = Callable[[Path], Path]
Srpo = Callable[..., tuple[int, str, str]]

# Prefect reads them once, when whichever test is first imports it.
for name, value in CLIENT_SETTINGS.items():
    os.environ.setdefault(name, value)

# The same examples at every run, and no clock: two cores are shared with other work.
settings.register_profile("srpo", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("srpo")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch on one thread: tiny networks gain nothing from two, and sums keep their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny random policy; shared by the session, never write to it."""
    folder = tmp_path_factory.mktemp("tiny") / "policy"
    write_tiny_policy(folder, 0, PRINTABLE, layers=1, hidden=16, spread=0.3)
    return folder


@pytest.fixture(scope="session")
def tiny_policy(tiny_folder: Path) -> OpenPolicy:
    """Return a factory of fresh tiny policies (see `_factory`)."""
    return _factory(tiny_folder)


@pytest.fixture(scope="session")
def demo_policy() -> OpenPolicy:
    """Return a factory of fresh copies of the shipped demo policy (see `_factory`)."""
    return _factory(Path(str(files("data") / "demo" / "policy")))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the folder of SmolLM2-135M-Instruct; made once, in the cache that commands use."""
    if gguf_file(SMOLLM2) is None:
        pytest.skip("SmolLM2 is not installed (make install)")
    return model_folder(SMOLLM2)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the shared server: that of all workers, where there are several."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def prefect_api(servers: Path) -> Iterator[dict[str, str]]:
    """Return the environment of a command: this process's, with the shared server's address."""
    with shared(servers) as found:
        yield {**os.environ, "PYTHONPATH": str(PROJECT), **found}


@pytest.fixture
def api_here(prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Have this process talk to the shared server too; return what `prefect_api` does."""
    leave_former()
    for name, value in prefect_api.items():
        monkeypatch.setenv(name, value)
    return prefect_api


@pytest.fixture
def srpo(
    api_here: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Srpo:
    """Return a function that runs a command and gives its exit code, its output and its errors."""
    # It would wait for clients of servers that earlier tests ended, and then end this process.
    monkeypatch.setattr(cli, "_leave", sys.exit)

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["srpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return called


@pytest.fixture(scope="session")
def own_server(servers: Path, prefect_api: dict[str, str]) -> OwnServer:
    """Return `prepared`, over what the shared server had at its start."""
    return partial(prepared, fresh=servers)


def _factory(folder: Path) -> OpenPolicy:
    def build(
        teacher: TeacherKind = "ema",
        rate: float = 0.05,
        mix: float = 0.05,
        period: int = 20,
        **model: Any,
    ) -> Policy:
        """Open a policy; `model` are settings of the section model besides path and device."""
        settings = TeacherSettings(kind=teacher, rate=rate, mix=mix, period=period)
        return open_on_cpu(folder, settings, **model)

    return build
