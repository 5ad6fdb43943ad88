"""What quickstart has done so far: one JSON file, so that an interrupted run continues where it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ladderlm import events, store


class Ledger:
    """Stages by name: settings, results, wall and CPU seconds. A stage counts only once its results are written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = store.read_json(path) if path.exists() else {}

    def run(self, name: str, settings: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The results of stage `name`: those on record if its settings are the same, else those of `work()`."""
        row = self._rows.get(name)
        if row is not None and row["settings"] == settings:
            events.emit("quickstart", f"{name}: done before")
            return row["results"]
        wall, cpu = time.perf_counter(), time.process_time()
        results = work()
        self._rows[name] = {
            "settings": settings,
            "results": results,
            "wall_seconds": round(time.perf_counter() - wall, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
        }
        store.write_json(self._path, self._rows)
        return results

    def results(self, name: str) -> dict[str, Any] | None:
        row = self._rows.get(name)
        return None if row is None else row["results"]

    def seconds(self) -> dict[str, tuple[float, float]]:
        """Stage -> (wall seconds, CPU seconds)."""
        return {name: (row["wall_seconds"], row["cpu_seconds"]) for name, row in self._rows.items()}
