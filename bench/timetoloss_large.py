"""`timetoloss` with 11 million weights and 20 minutes of a core; one seed, and nothing taken away."""

from __future__ import annotations

from typing import Any

from bench import timetoloss


def measure(minute: bool) -> dict[str, Any]:
    return timetoloss.measure(minute, "large", 1200.0, 2.0, seeds=(0,))
