"""What the kernel forbids a verifier's process. Each is tried; `holds` says what took effect.

    own_processes   a PID namespace: no process outside can be seen, and all inside end together
    no_network      a seccomp filter: no socket but Unix ones
    read_only       Landlock: files are written in one folder only, and no signal leaves

They need no privileges, and no library: three small tables for the kernel, filled in by hand.
`own_processes` needs user namespaces, or root with CAP_SYS_ADMIN; many containers refuse both.
"""

import ctypes
import errno
import os
import platform
import resource
import socket
import struct
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.task import Verdict

MAX_PROCESSES = 64
MAX_DESCRIPTORS = 256
MAX_FILE_MB = 64

WRITABLE = ("/dev/null", "/dev/zero", "/dev/full", "/dev/shm")
"""What programs expect to write: multiprocessing keeps its locks in /dev/shm."""

_NEW_MOUNTS, _NEW_USER, _NEW_PIDS = 0x00020000, 0x10000000, 0x20000000
NO_NEW_PRIVILEGES, _SET_SECCOMP = 38, 22
# The number of socket(2), and how the kernel names the machine to filters.
MACHINES = {"x86_64": (41, 0xC000003E), "aarch64": (198, 0xC00000B7)}
_IO_URING_SETUP, X32 = 425, 0x40000000
# Instructions of a filter and what they return; 0, 4, 16 are offsets of number, machine, argument.
LOAD, EQUAL, AT_LEAST, ANY_BIT, END = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
# Landlock's rights: to run, write, read and cut a file, to list a folder; then all that changes
# folders, REFER the last.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _REFER = 1 << 14, 1 << 13
_CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
READ_AND_RUN = _EXECUTE | _READ_FILE | _READ_FOLDER
_WRITE = _WRITE_FILE | _TRUNCATE | _CHANGE_FOLDER | _REFER
EVERYTHING = READ_AND_RUN | _WRITE
_SCOPES = 0b11  # abstract Unix sockets and signals

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, argument: int, pointer: object = None) -> bool:
    """Set something of this process; False: the kernel does not know it or refuses."""
    zero = ctypes.c_ulong(0)
    return bool(_libc.prctl(option, ctypes.c_ulong(argument), pointer, zero, zero) == 0)


def own_processes() -> bool:
    """Give the next child of this process, and all it starts, a PID namespace of their own."""
    user, group = os.geteuid(), os.getegid()
    if _libc.unshare(_NEW_PIDS) == 0:
        return True
    # Other users need a user namespace for it. A child tries that first: if the ids can't be mapped
    # after it was entered, the process is of no more use.
    probe = os.fork()
    if probe == 0:
        os._exit(0 if _own_users(user, group) else 1)
    return os.waitpid(probe, 0)[1] == 0 and _own_users(user, group)


def _own_users(user: int, group: int) -> bool:
    """Enter a user namespace, with PIDs, in which this user is who it was."""
    if _libc.unshare(_NEW_USER | _NEW_PIDS) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError:
        return False
    return True


def own_proc() -> None:
    """Have /proc show only the processes of this PID namespace, where that is allowed."""
    private_and_recursive, safe = 0x44000, 0xE
    if _libc.unshare(_NEW_MOUNTS) == 0:
        _libc.mount(None, b"/", None, ctypes.c_ulong(private_and_recursive), None)
        _libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(safe), None)


def bound(memory_mb: int) -> None:
    """Limit address space, files, descriptors and core dumps of this process and its children."""
    limits = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_FSIZE: MAX_FILE_MB << 20,
        resource.RLIMIT_NOFILE: MAX_DESCRIPTORS,
        resource.RLIMIT_CORE: 0,
    }
    for limit, wanted in limits.items():
        hard = resource.getrlimit(limit)[1]
        size = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (size, size))


def no_network() -> bool:
    """Refuse this process and its children every socket but Unix ones; pairs stay allowed."""
    if platform.machine() not in MACHINES:
        return False
    number, machine = MACHINES[platform.machine()]
    return seccomp(
        [
            (LOAD, 0, 0, 4),
            (EQUAL, 0, 7, machine),
            (LOAD, 0, 0, 0),
            (AT_LEAST, 5, 0, X32),
            (EQUAL, 4, 0, _IO_URING_SETUP),  # which makes sockets too
            (EQUAL, 0, 2, number),
            (LOAD, 0, 0, 16),
            (EQUAL, 0, 1, socket.AF_UNIX),
            (END, 0, 0, ALLOW),
            (END, 0, 0, REFUSE | errno.EACCES),
        ]
    )


def seccomp(program: Sequence[tuple[int, int, int, int]]) -> bool:
    """Have the kernel ask a program before each system call of this process and its children.

    Args:
        program: instructions of classic BPF: operation, jumps if true and if false, operand.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in program))
    head = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    return prctl(NO_NEW_PRIVILEGES, 1) and prctl(_SET_SECCOMP, 2, ctypes.c_char_p(head))


def read_only(folder: str) -> bool:
    """Let this process and its children change files below `folder` and `WRITABLE` only."""
    return landlock(_WRITE, dict.fromkeys((folder, *WRITABLE), _WRITE))


def has_landlock() -> bool:
    """Say whether this kernel enforces Landlock."""
    return _landlock_version() > 0


def _landlock_version() -> int:
    return _call(_CREATE_RULESET, None, 0, 1)


def landlock(rights: int, allowed: Mapping[str, int]) -> bool:
    """Take rights to files from this process and its children, but for those below some paths.

    Signals and abstract Unix sockets stay inside, where the kernel knows that (from Linux 6.12).

    Args:
        rights: the bits that are taken; those that this kernel doesn't know stay as they are.
        allowed: path to the rights that remain there; of a file, those that a file can have. Paths
            that don't exist are left out.
    """
    if not has_landlock():
        return False
    version = _landlock_version()
    rights &= ~((0 if version >= 3 else _TRUNCATE) | (0 if version >= 2 else _REFER))
    # The kernel refuses a longer table than it knows, unless the rest is zero.
    table = struct.pack("QQQ", rights, 0, _SCOPES if version >= 6 else 0)
    rules = _call(_CREATE_RULESET, table, len(table), 0)
    if rules < 0:
        return False
    for path, kept in allowed.items():
        with suppress(OSError):
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            kept &= rights if os.path.isdir(path) else rights & _OF_FILES
            _call(_ADD_RULE, rules, 1, struct.pack("=Qi", kept, opened), 0)
            os.close(opened)
    held = prctl(NO_NEW_PRIVILEGES, 1) and _call(_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return held


def _call(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call that has no function in the C library."""
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return int(_libc.syscall(ctypes.c_long(number), *longs))


def holds(name: str, response: str, reference: str) -> Verdict:
    """Judge for `srpo doctor` that reports what its own process may do."""
    own = os.getppid() == 1
    found = ["own PID namespace" if own else "no PID namespace: what it starts is ended one by one"]
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
        found.append("NETWORK OPEN: no seccomp")
    except PermissionError:
        found.append("no network (seccomp)")
    try:
        with tempfile.TemporaryFile(dir=Path(tempfile.gettempdir()).parent):
            found.append("FILES WRITABLE: no Landlock")
    except PermissionError:
        found.append("files read-only (Landlock)")
    return Verdict(1.0, True, ", ".join(found))
