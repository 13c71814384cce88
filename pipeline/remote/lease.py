"""One writer per run on a store: a lock object that its holder renews, as long as it lives.

RUN/.lock says who holds the run. It is made and changed on conditions only (If-None-Match,
If-Match), so that of two commands one succeeds. Clocks of two machines are never compared: a
command that finds another holder watches the object; if it doesn't change for that holder's
`lease_seconds`, the holder is gone. A holder that could not renew it for that long stops before its
next commit, or takes it again if nobody else has.

The holder of the lock on the mirror (`pipeline.run.lock`) knows that no other process of its
machine writes through the same mirror: a lease that was left by one is taken over at once.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import StoreError
from pipeline.remote import objects
from pipeline.remote.client import Changed
from pipeline.remote.mirror_paths import address_of, cache_folder
from pipeline.remote.objects import Version

LEASE_SECONDS = 30.0
"""How long a lease holds without renewal; recorded in it, so that commands may differ."""
RENEWALS = 3
"""How often a lease is renewed in that time."""
POLL_SECONDS = 1.0
LOCK = ".lock"
_NEVER = Version('"never"', "1")
"""A state that no object was ever in."""
_LONGEST_LEASE = 600.0


class Lease:
    """A hold on a run on a store, renewed by a thread until it is released."""

    def __init__(self, root: Path, holder: dict[str, Any]) -> None:
        """Take the lease; wait up to another holder's lease to see whether it is alive.

        Args:
            holder: who takes it: command, process, host, since.

        Raises:
            StoreError: another command holds it, or the store ignores conditions.
        """
        address = address_of(root)
        assert address is not None
        self._url, self._lock_object = f"{address}", address / LOCK
        mirror = f"{_machine()} {root.resolve()}"
        self._record = {**holder, "mirror": mirror, "lease_seconds": LEASE_SECONDS, "beat": 0}
        self._record["token"] = secrets.token_hex(8)
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._renewed = _now()
        self._version = self._taken()
        self._expect_conditions()
        threading.Thread(target=self._renew_until_released, name="lease", daemon=True).start()

    def expect_held(self) -> None:
        """Make sure that nobody else can have taken over the run; called before each commit.

        Raises:
            StoreError: somebody has, or the store can't be asked.
        """
        with self._guard:
            if not self._fresh:
                self._renew()

    def release(self, run_exists: bool = True) -> None:
        """Release the lease at once; if the store doesn't answer, it expires.

        Args:
            run_exists: False: nothing is stored, so the lock object goes too.
        """
        self._ended.set()
        with self._guard, contextlib.suppress(Changed, StoreError):
            if self._fresh and run_exists:
                free = json.dumps({"free": True}).encode()
                objects.replace(self._lock_object, free, self._version)
            elif self._fresh:
                objects.remove(self._lock_object)

    @property
    def _fresh(self) -> bool:
        """Tell whether the lease is far from expiring, by this machine's clock."""
        return _now() - self._renewed < LEASE_SECONDS * 2 / 3

    def _renew_until_released(self) -> None:
        while not self._ended.wait(LEASE_SECONDS / RENEWALS):
            with self._guard:
                if self._ended.is_set():
                    return
                with contextlib.suppress(StoreError):  # `expect_held` tells, before a commit
                    self._renew()

    def _renew(self) -> None:
        begun = _now()
        self._record["beat"] += 1
        try:
            self._version = objects.replace(self._lock_object, self._content(), self._version)
        except Changed:
            self._version = self._own_version()
            self._renew()
        else:
            self._renewed = begun

    def _own_version(self) -> Version:
        """Return the state of the lock object, if a renewal whose answer never came made it.

        Raises:
            StoreError: somebody else did.
        """
        found = objects.read(self._lock_object)
        holder = _parsed(found[0]) if found else {}
        if found is None or holder.get("token") != self._record["token"]:
            raise StoreError(
                f"{self._url}: taken over by {_described(holder)}, since this command did not "
                f"renew its lease for {LEASE_SECONDS:g} s; it ends before it commits anything else"
            )
        return found[1]

    def _taken(self) -> Version:
        watched: Version | None = None
        deadline = 0.0
        while True:
            self._renewed = _now()
            found = objects.read(self._lock_object)
            try:
                if found is None:
                    return objects.create(self._lock_object, self._content())
                holder, version = _parsed(found[0]), found[1]
                gone = watched == version and _now() > deadline
                if gone or "free" in holder or holder.get("mirror") == self._record["mirror"]:
                    return objects.replace(self._lock_object, self._content(), version)
            except Changed:
                continue
            if watched is None:
                watched, deadline = version, _now() + _lease_of(holder)
                self._say(holder)
            elif watched != version:
                raise StoreError(
                    f"{self._url}: another command is writing to it: {_described(holder)}; wait "
                    "until it has ended, or end it"
                )
            time.sleep(POLL_SECONDS)

    def _say(self, holder: dict[str, Any]) -> None:
        print(
            f"{self._url}: held by {_described(holder)}; if it doesn't show itself within "
            f"{_lease_of(holder):g} s it is gone, and this command goes on",
            file=sys.stderr,
        )

    def _expect_conditions(self) -> None:
        """Refuse a store that would write in spite of a condition that doesn't hold."""
        with contextlib.suppress(Changed):
            objects.create(self._lock_object, b"{}")
            self._refuse("If-None-Match")
        with contextlib.suppress(Changed):
            objects.replace(self._lock_object, b"{}", _NEVER)
            self._refuse("If-Match")

    def _refuse(self, ignored: str) -> NoReturn:
        raise StoreError(
            f"{self._url}: this store ignores conditional writes ({ignored}), so nothing would "
            "keep two commands from writing to one run; keep runs on another one"
        )

    def _content(self) -> bytes:
        return json.dumps(self._record).encode()


def _now() -> float:
    """Return seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _machine() -> str:
    """Return a unique name of this machine's cache."""
    path = cache_folder() / "id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".id-{os.getpid()}")
        made.write_text(secrets.token_hex(16), encoding="utf-8")
        with contextlib.suppress(FileExistsError):  # of another command
            os.link(made, path)
        made.unlink()
    return f"{socket.gethostname()} {path.read_text(encoding='utf-8')}"


def _parsed(content: bytes) -> dict[str, Any]:
    """Read a lock object, which another program may have written."""
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _lease_of(holder: dict[str, Any]) -> float:
    seconds = holder.get("lease_seconds")
    known = isinstance(seconds, int | float) and 0 <= seconds <= _LONGEST_LEASE
    return float(seconds) if known else LEASE_SECONDS  # type: ignore[arg-type]


def _described(holder: dict[str, Any]) -> str:
    return "{command} (process {process} on {host}, since {since})".format(
        **{key: holder.get(key, "?") for key in ("command", "process", "host", "since")}
    )
