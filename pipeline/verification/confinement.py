"""What a program that a verifier runs may do: much less than the verifier itself.

A verifier that runs a response's code starts a process for it and calls `confine` there, between
fork and exec. From then on that process

    stays one process            no fork; it may become another program, under the same limits
    reaches no other one         no signal, no look into its memory, no change of its limits; so it
                                 can neither read the tests nor end or slow down who judges it
    leaves nothing behind        it writes no file, changes no file's mode, owner or time, and makes
                                 nothing else that outlives it
    sees the system only         no file can be read but the interpreter's and those in /usr and
                                 /lib; /proc can't either, and no socket can be made
    has its own limits           memory, processor time, size of what it prints

As in `sandbox`, each is tried, and needs no privileges. `bystander` is for the verifier: on a
kernel without Landlock it keeps the process from reading the verifier's memory.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import sys
from contextlib import suppress

from pipeline.verification.sandbox import (
    ALLOW,
    ANY_BIT,
    AT_LEAST,
    END,
    EQUAL,
    EVERYTHING,
    LOAD,
    MACHINES,
    READ_AND_RUN,
    REFUSE,
    X32,
    has_landlock,
    landlock,
    prctl,
    seccomp,
)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_CAPABILITIES_3 = 0x20080522
_libc = ctypes.CDLL(None)  # here: nothing is loaded between fork and exec
# Root is let at files of other users, as its interpreter may be one of them.
_OVER_MODES = 0b110

_READABLE = ("/usr", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime")
"""Where the interpreter and its libraries lie, beside its own folders."""

_THREAD, _NOT_KNOWN = 0x00010000, REFUSE | errno.ENOSYS
_FORBIDDEN = {
    "fork": (57, None),
    "vfork": (58, None),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    # What Landlock lets everybody do to files of their user.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "truncate": (76, 45),
}
"""System calls that reach beyond the process or outlive it: numbers on x86-64 and on ARM."""
_CLONE, _CLONE3, _PRLIMIT = (56, 220), 435, (302, 261)
_OWNERS = (((72, 25), (8, 15)), ((16, 29), (0x8901, 0x8902)))
"""fcntl and ioctl, and those of their commands that have a file signal another process."""


def bystander() -> None:
    """Where there is no Landlock, close this process's memory to others of its user."""
    if sys.platform == "linux" and not has_landlock():
        prctl(_PR_SET_DUMPABLE, 0)


def confine(memory_mb: int, processor_seconds: int, output_mb: int) -> None:
    """Confine this process, which is about to become an interpreter (see above)."""
    limits = {
        resource.RLIMIT_AS: (memory_mb << 20, memory_mb << 20),
        # The first limit's signal says why the process ended; it may ignore that, not the second.
        resource.RLIMIT_CPU: (processor_seconds, processor_seconds + 1),
        resource.RLIMIT_FSIZE: (output_mb << 20, output_mb << 20),
        resource.RLIMIT_CORE: (0, 0),
    }
    for limit, wanted in limits.items():
        hard = resource.getrlimit(limit)[1]
        bounded = [size if hard == resource.RLIM_INFINITY else min(size, hard) for size in wanted]
        resource.setrlimit(limit, (bounded[0], bounded[1]))
    if sys.platform != "linux":
        return
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _drop_privileges()
    own = (sys.prefix, sys.base_prefix, os.path.realpath(sys.executable))
    landlock(EVERYTHING, dict.fromkeys((*_READABLE, *own), READ_AND_RUN))
    _stay_alone()


def _drop_privileges() -> None:
    """Give up root's privileges over other processes and the machine, if this process has them."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    with suppress(AttributeError):  # a C library without these functions
        if _libc.capget(header, sets) == 0:
            kept = [have & _OVER_MODES for have in sets[:3]]  # of the first 32; none of the rest
            _libc.capset(header, (ctypes.c_uint32 * 6)(*kept))


def _stay_alone() -> bool:
    """Refuse this process all system calls that start, reach or outlast processes."""
    machines = ("x86_64", "aarch64")
    if platform.machine() not in machines:
        return False
    which = machines.index(platform.machine())
    refuse = (END, 0, 0, REFUSE | errno.EPERM)
    program = [
        (LOAD, 0, 0, 4),
        (EQUAL, 1, 0, MACHINES[machines[which]][1]),
        refuse,
        (LOAD, 0, 0, 0),
        (AT_LEAST, 0, 1, X32),
        refuse,
        # Its flags lie in memory, where no filter can look; the C library then takes the older one.
        (EQUAL, 0, 1, _CLONE3),
        (END, 0, 0, _NOT_KNOWN),
        *_with_argument(_CLONE[which], 0, [(ANY_BIT, 1, 0, _THREAD), refuse]),
        *_with_argument(_PRLIMIT[which], 0, [(EQUAL, 1, 0, 0), refuse]),
    ]
    for numbers, commands in _OWNERS:
        checks = [row for command in commands for row in ((EQUAL, 0, 1, command), refuse)]
        program += _with_argument(numbers[which], 1, checks)
    for call in _FORBIDDEN.values():
        number = call[which]
        if number is not None:
            program += [(EQUAL, 0, 1, number), refuse]
    return seccomp([*program, (END, 0, 0, ALLOW)])


def _with_argument(
    number: int, argument: int, checks: list[tuple[int, int, int, int]]
) -> list[tuple[int, int, int, int]]:
    """Return the checks of an argument (its lower half) of one system call."""
    load = [(LOAD, 0, 0, 16 + 8 * argument)]
    return [(EQUAL, 0, len(checks) + 2, number), *load, *checks, (LOAD, 0, 0, 0)]
