"""Quickstart: the three rungs on real input, one after the other, resumable, with a report at the end."""

from ladderlm.apps.quickstart.climb import QuickstartConfig, run

__all__ = ["QuickstartConfig", "run"]
