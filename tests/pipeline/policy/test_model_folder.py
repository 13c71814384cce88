"""model.path: what looks like a path is one, and the hub is asked once, with a limit."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.errors import PolicyError
from pipeline.policy import model_folder as module
from pipeline.policy.model_folder import model_folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of its own, with an empty cache of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "weights.txt").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    module._copy_of_hub.cache_clear()
    return tmp_path


def refusal(path: str) -> str:
    with pytest.raises(PolicyError) as caught:
        model_folder(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"model.path {path}: ")
    return message


@pytest.mark.parametrize("path", ["models/mine", "./models/mine", "~/models/mine", "models/mine/"])
def test_folders_that_are_there(place: Path, path: str) -> None:
    assert model_folder(path).resolve() == (place / "models" / "mine").resolve()


@pytest.mark.parametrize(
    "path",
    [
        *("/nowhere/at/all", "./nowhere", "../nowhere", "~/nowhere", "models/other", "a/b/c"),
        *("org/name/", "my model", "model.safetensors", "org/name.gguf", "C:\\models\\x", "a//b"),
        *("qwen:7b", "https://huggingface.co/org/name", ".hidden"),
    ],
)
def test_what_looks_like_a_path_is_not_asked_of_the_hub(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HfApi", lambda: pytest.fail("asked the hub"))
    assert "no such model folder" in refusal(path)


def test_a_file_is_no_folder() -> None:
    assert "a file; expected the folder of a model" in refusal("weights.txt")


@contextmanager
def hub(status: int, seconds: float = 0.0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(seconds)
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the hub at another address."""
    real = module.HfApi
    monkeypatch.setattr(module, "HfApi", lambda: real(endpoint=url))
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.mark.parametrize("name", ["org/name", "gpt2"])
def test_no_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        at(f"http://127.0.0.1:{nobody.getsockname()[1]}", monkeypatch)
        started = time.monotonic()
        message = refusal(name)
    assert time.monotonic() - started < 5
    assert "no copy in the cache" in message and "can't be reached (ConnectError" in message


def test_a_hub_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HUB_SECONDS", 0.5)
    with hub(200, seconds=3) as url:
        at(url, monkeypatch)
        started = time.monotonic()
        assert "can't be reached" in refusal("org/name") or "no answer" in refusal("org/name")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("status", [401, 404])
def test_a_model_that_the_hub_has_not(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(status) as url:
        at(url, monkeypatch)
        assert f"has no such model, or none for you ({status}" in refusal("org/name")


def test_offline_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal("org/name")


def test_a_copy_in_the_cache_needs_no_network(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kept = place / "cache" / "models--org--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    (kept / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (kept / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    monkeypatch.setattr(
        module,
        "snapshot_download",
        lambda *a, **k: __import__("huggingface_hub").snapshot_download(
            *a, cache_dir=place / "cache", **k
        ),
    )
    assert model_folder("org/name") == kept / "snapshots" / ("0" * 40)
