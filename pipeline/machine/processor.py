"""What processor this machine has."""

import platform
from pathlib import Path


def processor() -> str:
    """Return the processor's name and the vector instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    known = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return ", ".join([fields.get("model name", platform.machine()), *known])
