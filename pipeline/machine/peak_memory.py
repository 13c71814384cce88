"""Peak memory of a piece of work: of the process, and of its GPU if there is one."""

import resource
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"


class PeakMemory:
    """Measures since its creation; if the kernel can't reset its peak, since the process began."""

    def __init__(self) -> None:
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:  # no Linux, or a container that forbids it
            self._resettable = False
        else:
            self._resettable = True
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def megabytes(self) -> float:
        """Return the largest resident set since then, plus the largest allocation on the GPU."""
        gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
        if not self._resettable:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + gpu
        lines = _STATUS.read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024 + gpu
