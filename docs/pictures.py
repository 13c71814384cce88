"""Take the pictures of docs/walkthrough.md and docs/methods_side_by_side.md in headless Chromium.

.venv/bin/python docs/pictures.py FOLDER    makes the runs in FOLDER/runs, if they aren't there;
                                            needs chromium (make browser)
"""

import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).parent / "images"
SRPO = Path(sys.executable).with_name("srpo")
SITE = "http://127.0.0.1:9735"
ROLLOUT = "000003-0002-01"
REAL_ROLLOUT = "000000-0007-04"
POLICY = "policies/smollm2"
COMMANDS = {
    "runs/demo-1": "train demo --run runs/demo-1",
    "runs/no-weights": "replay runs/demo-1 --from weigh --steps 3:4 --set weigh.beta=0 "
    "--fork runs/no-weights",
}
REAL = {
    POLICY: f"warmstart smollm2 --out {POLICY} --set run.threads=1",
    "runs/smollm2-1": f"train smollm2 --run runs/smollm2-1 --set model.lora.adapter={POLICY} "
    "--set run.threads=1 --set run.steps=1",
}
METHODS = "advantage_mix", "grpo", "rlsd", "sdpo", "srpo"
REPLAY = "replay runs/demo-1 --from route --steps 3:4 --set route.method={} --fork runs/methods"
COMPARE = "compare --gradients {} --out runs/side-by-side"


def main(folder: Path) -> None:
    """Make the runs, serve their pages, and photograph six of them."""
    forks = " ".join(f"runs/methods/route.method={method}" for method in METHODS)
    made = {
        **COMMANDS,
        **REAL,
        "runs/methods": REPLAY.format(",".join(METHODS)),
        "runs/side-by-side": COMPARE.format(forks),
    }
    for run, command in made.items():
        if not (folder / run).exists():
            subprocess.run([SRPO, *command.split()], cwd=folder, check=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        with _served(folder, *COMMANDS):
            _take(page, "/runs/demo-1/", "run", 760)
            _take(page, "/runs/demo-1/steps/3/", "step", 1430)
            _take(page, "/compare/demo-1/no-weights/", "compare", 840)
            _open_rollout(page, f"/runs/demo-1/rollouts/{ROLLOUT}/", 8)
            _photograph(page, "rollout", 1180)
        with _served(folder, "runs/smollm2-1"):
            _open_rollout(page, f"/runs/smollm2-1/rollouts/{REAL_ROLLOUT}/", 18)
            _photograph(page, "real_rollout", 780, top=565)  # tokens and demonstration
        page.goto((folder / "runs/side-by-side/index.html").resolve().as_uri())
        page.locator(".tokens").nth(1).locator(".t").nth(2).click()
        _photograph(page, "side_by_side", 1580)
        browser.close()


@contextmanager
def _served(folder: Path, *runs: str) -> Iterator[None]:
    server = subprocess.Popen([SRPO, "view", *runs, "--port", SITE[-4:]], cwd=folder)
    try:
        _wait()
        yield
    finally:
        server.terminate()
        server.wait()


def _wait() -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(SITE).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{SITE} did not answer within 20 s")


def _take(page: Page, path: str, name: str, height: int) -> None:
    page.goto(SITE + path)
    page.wait_for_timeout(2500)  # charts draw after the page has loaded
    _photograph(page, name, height)


def _open_rollout(page: Page, path: str, token: int) -> None:
    page.goto(SITE + path)
    page.keyboard.press("4")  # colours: divergence
    page.locator(".t").nth(token).click()
    page.wait_for_timeout(500)


def _photograph(page: Page, name: str, height: int, top: int = 0) -> None:
    clip = {"x": 0, "y": top, "width": 1280, "height": height}
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True, clip=clip)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
