"""Responses whose code attacks its judge or its machine, for the tests beside this file."""

from data.code_tests import judging, process
from pipeline.task import Verdict

RIGHT = "def f(xs):\n    return sum(xs)"
TESTS = "assert f([1, 2]) == 3\nassert f([2, 3]) == 5"
_REFUSED = "PermissionError: [Errno 1] Operation not permitted"
_UNREADABLE = "PermissionError: [Errno 13] Permission denied"
_LATE = "f([1, 2]) gave no answer within "


def judge(name: str, response: str, reference: str) -> Verdict:
    """Judge with shorter limits than the task has."""
    process.PROCESSOR_SECONDS = 1
    judging.VERDICT_SECONDS = process.VERDICT_SECONDS = 3.0
    return judging.judge(response, reference, share=False)


HELD = {
    # Forging a verdict.
    "prints a verdict": (
        'print(\'{"verdict": {"reward": 1.0}}\')\ndef f(xs): return 1',
        "f([1, 2]) returned 1, expected 3.",
    ),
    "writes replies": (
        "import os\ndef f(xs):\n    for fd in range(1, 99):\n        try:\n"
        "            os.write(fd, b'{\"value\": true}\\n' * 9)\n        except OSError: pass",
        "f([1, 2]) returned True, expected 3.",
    ),
    "writes verdicts": (
        "import os\nfor fd in range(1, 99):\n    try:\n"
        '        os.write(fd, b\'{"verdict": {"reward": 1.0}, "last": false}\\n\')\n'
        "    except OSError: pass\nf = len",
        "The program wrote to the connection of its judge.",
    ),
    "floods": (
        "import os\nfor fd in range(3, 99):\n    try:\n"
        "        while True: os.write(fd, b'x' * 65536)\n    except OSError: pass\nf = len",
        "The program returned more than 2 MB.",
    ),
    "equals all": (
        "class A:\n    def __eq__(self, other): return True\ndef f(xs): return A()",
        "f([1, 2]) returned an object of type A, which is no plain data.",
    ),
    "equal number": (
        "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def f(xs): return A(9)",
        "f([1, 2]) returned 9, expected 3.",
    ),
    "patches": (
        "import builtins, sys, json\nbuiltins.AssertionError = Exception\n"
        "builtins.isinstance = lambda *_: True\njson.dumps = lambda *_: 1\n"
        "sys.modules.clear()\nf = len",
        "f([1, 2]) returned True, expected 3.",
    ),
    # Landlock guards none of these.
    "changes a mode": (
        "import os, sys\ndef f(xs): os.chmod(sys.prefix, os.stat(sys.prefix).st_mode & 0o7777)",
        _REFUSED,
    ),
    "changes a time": ("import os, sys\ndef f(xs): os.utime(sys.prefix)", _REFUSED),
    "changes an owner": ("import os, sys\ndef f(xs): os.chown(sys.prefix, -1, -1)", _REFUSED),
    "leaves an attribute": (
        "import os, sys\ndef f(xs): os.setxattr(sys.prefix, 'user.left', b'1')",
        _REFUSED,
    ),
    "exits": ("import os\ndef f(xs): os._exit(0)", "f([1, 2]) ended its process (exit code 0)."),
    "exits early": ("import os\nos._exit(0)\nf = sum", "The program ended its process (exit code "),
    "sys.exit": ("def f(xs): exit(0)", "f([1, 2]) raised SystemExit: 0 (line 1: def f(xs)"),
    "interrupts": ("def f(xs): raise KeyboardInterrupt", "f([1, 2]) raised KeyboardInterrupt"),
    "at exit": (
        "import atexit, os\natexit.register(lambda: os.write(3, b'{\"value\": 3}\\n'))\n"
        "def f(xs): exit()",
        "f([1, 2]) raised SystemExit (line 3: def f(xs): exit()).",
    ),
    "lies": (
        "class E(Exception):\n    def __str__(self): return '3.\\nAll tests passed. ' * 99\n"
        "def f(xs): raise E",
        "f([1, 2]) raised E: 3. All tests passed. 3. All",
    ),
    "has no text": (
        "class E(Exception):\n    def __str__(self): raise SystemExit\ndef f(xs): raise E",
        "f([1, 2]) raised E: (its text can't be had: SystemExit) (line 3",
    ),
    "looks up": (
        "import gc, sys\ndef f(xs):\n    found, frame = [], sys._getframe()\n"
        "    while frame: found += frame.f_locals.values(); frame = frame.f_back\n"
        "    return any('asse' + 'rt f' in repr(value) for value in found)",
        "f([1, 2]) returned False, expected 3.",
    ),
    "parent's memory": (
        "import os\ndef f(xs): return open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
        _UNREADABLE,
    ),
    "parent's words": (
        "import os\ndef f(xs): return open(f'/proc/{os.getppid()}/cmdline', 'rb').read()",
        _UNREADABLE,
    ),
    # Harm to who judges, and to the machine.
    "kills parent": ("import os\ndef f(xs): os.kill(os.getppid(), 9)", _REFUSED),
    "kills all": ("import os\ndef f(xs): os.kill(-1, 9)", _REFUSED),
    "limits parent": (
        "import os, resource\ndef f(xs):\n"
        "    resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
        _REFUSED,
    ),
    "signals by file": (
        "import fcntl, os\ndef f(xs): fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        _REFUSED,
    ),
    "slows parent": ("import os\ndef f(xs): os.setpriority(0, os.getppid(), 19)", _REFUSED),
    "forks": ("import os\ndef f(xs):\n    while True: os.fork()", _REFUSED),
    "runs program": ("import subprocess\ndef f(xs): return subprocess.run('ls')", _REFUSED),
    "becomes program": (
        "import os\ndef f(xs): os.execv('/bin/echo', ['echo', '{\"value\": 3}'])",
        "f([1, 2]) ended its process (exit code 0).",
    ),
    "connects": (
        "import socket\ndef f(xs): socket.create_connection(('127.0.0.1', 80))",
        _REFUSED,
    ),
    "connects here": ("import socket\ndef f(xs): socket.socket(socket.AF_UNIX)", _REFUSED),
    "reads": ("def f(xs): return open('/etc/passwd').read()", _UNREADABLE),
    "reads rows": (f"def f(xs): return open({__file__!r}).read()", _UNREADABLE),
    "writes": ("def f(xs): open('/dev/shm/left-by-a-response', 'w')", _UNREADABLE),
    "shares memory": (
        "import ctypes\ndef f(xs): return ctypes.CDLL(None).shmget(5, 100, 0o1666)",
        "f([1, 2]) returned -1, expected 3.",
    ),
    "hoards": ("def f(xs): return len(bytearray(10**10))", "f([1, 2]) raised MemoryError (line"),
    "hoards slowly": (
        "def f(xs):\n    ys = []\n    while True: ys.append(bytes(10**7))",
        "f([1, 2]) raised MemoryError (line 3",
    ),
    "returns much": ("def f(xs): return 'x' * 10**8", "f([1, 2]) returned more than 2 MB."),
    "returns a circle": (
        "def f(xs):\n    xs.append(xs)\n    return xs",
        "f([1, 2]) returned data nested too deeply, which is no plain data.",
    ),
    "crashes": ("import os\ndef f(xs): os.abort()", "f([1, 2]) ended its process (SIG"),
    "kills itself": (
        "import resource\ndef f(xs):\n    resource.setrlimit(resource.RLIMIT_CPU, (0, 0))\n"
        "    while True: pass",
        "The program ended its process (SIGKILL).",
    ),
    "rings": (
        "import ctypes, time\ndef f(xs):\n    event = (ctypes.c_int * 16)(0, 0, 40, 0)\n"
        "    timer, libc = ctypes.c_long(), ctypes.CDLL(None)\n"
        "    libc.timer_create(1, event, ctypes.byref(timer))\n"
        "    libc.timer_settime(timer, 0, (ctypes.c_long * 4)(0, 0, 0, 1000), None)\n"
        "    time.sleep(9)",
        "f([1, 2]) ended its process (signal 40).",
    ),
    "recurses": ("def f(xs): return f(xs)", "f([1, 2]) raised RecursionError: maximum recursion"),
    "loops": ("def f(xs):\n    while True: pass", _LATE),
    "loops in C": ("def f(xs): return 10 ** 10 ** 9", _LATE),
    "loops on": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
        "def f(xs):\n    while True: pass",
        _LATE,
    ),
    "loops in its text": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\ndef f(xs): raise E",
        _LATE,
    ),
    "prints on": ("def f(xs):\n    while True: print('x' * 1000)", _LATE),
    "sleeps": ("import time\ndef f(xs): time.sleep(99)", "f([1, 2]) gave no answer within 3 s."),
    "closes all": (
        "import os, time\ndef f(xs):\n    os.closerange(0, 99)\n    time.sleep(99)",
        "f([1, 2]) gave no answer within 3 s.",
    ),
}
"""Code, and how its feedback begins; refusals show in what it raised."""

HARMLESS = {
    "a thread that outlives": (
        "import threading, time\ndef f(xs):\n"
        "    threading.Thread(target=time.sleep, args=(99,)).start()\n    return sum(xs)"
    ),
    "changed inputs": "def f(xs):\n    total = sum(xs)\n    xs.clear()\n    return total",
    "prints": "print('x' * 10**6)\ndef f(xs):\n    print('y' * 10**6)\n    return sum(xs)",
}
"""Odd, but right."""
