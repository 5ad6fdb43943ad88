"""What a piece of work has taken of the machine."""

from __future__ import annotations

import sys


def peak_memory_mb() -> float:
    """The most memory that this process has had, in MB; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
