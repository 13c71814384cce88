"""A disk that fails at one chosen call, or loses power there.

While it is in place, every call that changes files under a folder is counted: open for writing,
write, fsync, rename, unlink, mkdir, rmdir. At the chosen one the disk does what it was told to:

    error    the call raises an OSError and does nothing; later calls work
    short    a write stores half of its bytes, then raises ENOSPC
    cut      the power goes: nothing happens any more, and what was not synced is lost. Contents
             that were not synced are emptied; names that were not synced in their folder are
             kept ("cut, names kept") or taken back, both of which real file systems do.

Libraries that write without Python (safetensors, tokenizers) are not counted, but what they wrote
is lost like everything else unless it was synced.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

Fault = Literal["ENOSPC", "EIO", "short", "cut", "cut, names kept"]
FAULTS: tuple[Fault, ...] = ("ENOSPC", "EIO", "short", "cut", "cut, names kept")


class PowerCut(BaseException):
    """The machine is off."""


@dataclass
class BrokenDisk:
    """Counts calls, and breaks one.

    Attributes:
        at: number of the call that fails; -1: none.
        calls: names of the calls so far.
    """

    root: Path
    at: int = -1
    fault: Fault = "EIO"
    calls: list[str] = field(default_factory=list)
    _off: bool = False
    _before: dict[int, bytes] = field(default_factory=dict)
    _synced: set[int] = field(default_factory=set)
    _unsure: list[tuple[Path | None, Path, Path | None]] = field(default_factory=list)
    """Names that no sync of their folder made durable: former name, name, copy of the old file."""

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Stand between Python and the disk for a block; a power cut ends it quietly."""
        attic = self.root.with_name(f"{self.root.name}-attic")
        attic.mkdir(exist_ok=True)
        files = [path for path in self.root.rglob("*") if path.is_file()]
        self._before = {path.stat().st_ino: path.read_bytes() for path in files}
        with pytest.MonkeyPatch.context() as patch:
            for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir"):
                patch.setattr(os, name, self._counted(name, getattr(os, name), attic))
            patch.setattr(os, "fsync", self._fsync(os.fsync))
            patch.setattr(Path, "open", self._open(Path.open))
            try:
                yield
            except PowerCut:
                pass
            finally:
                self.at = -1
        if self._off:
            self._lose(attic)
        shutil.rmtree(attic)

    def _here(self, path: Any) -> bool:
        return isinstance(path, str | Path) and Path(path).is_relative_to(self.root)

    def _count(self, name: str) -> bool:
        """Note a call; tell whether it fails by a short write, raise if it fails otherwise."""
        if self._off:
            raise PowerCut
        self.calls.append(name)
        if len(self.calls) - 1 != self.at:
            return False
        if self.fault.startswith("cut"):
            self._off = True
            raise PowerCut
        if self.fault == "short" and name == "write":
            return True
        number = errno.EIO if self.fault == "EIO" else errno.ENOSPC
        raise OSError(number, os.strerror(number))

    def _counted(self, name: str, real: Callable[..., Any], attic: Path) -> Callable[..., Any]:
        def call(path: Any, *others: Any, **named: Any) -> Any:
            counted = self._here(path) or bool(named.get("dir_fd"))
            if counted:
                self._count(name)
            if self._here(path) and name in ("replace", "rename"):
                self._note(Path(path), Path(others[0]), attic)
            elif self._here(path) and name in ("unlink", "remove"):
                self._note(None, Path(path), attic)
            return real(path, *others, **named)

        return call

    def _note(self, source: Path | None, target: Path, attic: Path) -> None:
        old = None
        if target.is_file():
            old = attic / str(len(self._unsure))
            shutil.copyfile(target, old)
        self._unsure.append((source, target, old))

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if self._here(path):
                self._count("fsync of a folder" if path.is_dir() else "fsync")
                self._synced.add(path.stat().st_ino)
                self._unsure = [names for names in self._unsure if names[1].parent != path]
            real(descriptor)

        return call

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, mode: str = "r", *others: Any, **named: Any) -> Any:
            if not self._here(path) or not set(mode) & set("wax+"):
                return real(path, mode, *others, **named)
            self._count("open")
            file = real(path, mode, *others, **named)
            self._synced.discard(path.stat().st_ino)
            return _CountedFile(file, self)

        return call

    def _lose(self, attic: Path) -> None:
        """Take back what no sync had made durable."""
        for path in self.root.rglob("*"):
            inode = path.stat().st_ino
            unsynced = path.is_file() and inode not in self._synced
            if unsynced and self._before.get(inode) != path.read_bytes():
                path.write_bytes(b"")
        if self.fault == "cut, names kept":
            return
        for source, target, old in reversed(self._unsure):
            if source is not None and target.exists():
                target.rename(source)
            if old is not None:
                shutil.copyfile(old, target)


class _CountedFile:
    """A file whose writes count."""

    def __init__(self, file: Any, disk: BrokenDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        if self._disk._count("write"):
            self._file.write(memoryview(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_CountedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
