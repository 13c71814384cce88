"""A disk of a few megabytes, mounted by the test, that can be filled, shrunk and made read-only."""

import contextlib
import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

FILLER = ".filler"


class SmallDisk:
    """A tmpfs at `root`."""

    def __init__(self, root: Path, megabytes: int) -> None:
        self.root = root
        root.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(root))

    def fill(self, left: int) -> None:
        """Leave so many bytes free."""
        state = os.statvfs(self.root)
        wanted = state.f_bavail * state.f_frsize - left
        # whoever writes beside may take the last blocks first
        with contextlib.suppress(OSError), (self.root / FILLER).open("ab", buffering=0) as file:
            for _ in range(max(0, wanted) // state.f_frsize):
                file.write(bytes(state.f_frsize))

    def free(self) -> None:
        """Remove what filled it."""
        (self.root / FILLER).unlink()

    def remount(self, options: str) -> None:
        """Change it in place: `ro`, `rw`, `size=20m`, as soon as nobody writes."""
        deadline = time.monotonic() + 10
        while True:
            try:
                return self._mount("-o", f"remount,{options}", str(self.root))
            except PermissionError as error:
                if "busy" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def unmount(self) -> None:
        """Take it away, also under the feet of a server that is about to end."""
        subprocess.run(["umount", "-l", str(self.root)], check=True)

    @staticmethod
    def _mount(*arguments: str) -> None:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
        if done.returncode:
            raise PermissionError(errno.EPERM, done.stderr.strip())


def mounted(root: Path, megabytes: int) -> SmallDisk:
    """Mount one, or skip the test where that is not allowed."""
    if os.geteuid():
        pytest.skip("mounting a small disk takes root")
    try:
        return SmallDisk(root, megabytes)
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
