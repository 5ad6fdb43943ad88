"""Run folders as the page shows them: what is running, its curves so far, samples and the report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ladderlm import store
from ladderlm.errors import FormatError, NotFound
from ladderlm.types import Run

Object = dict[str, Any]

STALE = 180.0  # seconds without a new line after which an unfinished run is taken for stopped
POINTS = 2000  # of a curve, at most
TAIL = 4096  # bytes that hold the last line


def list_runs() -> list[Object]:
    """The latest first. Reads the settings and the last line of each."""
    found = []
    for run in store.list_runs():
        try:
            found.append(_entry(run))
        except (FormatError, OSError):  # a folder that is just being made, or removed
            continue
    return sorted(found, key=lambda entry: -entry["created"])


def get_run(name: str) -> Object:
    """One run: settings, result, what came of it, and the report's Markdown."""
    run = _run(name)
    report = run.report.read_text(encoding="utf-8") if run.report.exists() else ""
    return {**_entry(run), "config": _json(run.config), "result": _json(run.path / "result.json"), "report": report}


def metrics(name: str, after: int = 0) -> Object:
    """Rows of the curves from line `after` on, thinned out when there are many; `next` is where to go on."""
    rows = store.read_jsonl(_run(name).metrics)
    new = rows[after:]
    step = max(1, -(-len(new) // POINTS))
    kept = [row for number, row in enumerate(new) if number % step == 0 or number == len(new) - 1]
    return {"object": "list", "data": kept, "next": len(rows)}


def samples(name: str, limit: int = 200) -> list[Object]:
    """The last samples that the model wrote on the way."""
    return store.read_jsonl(_run(name).samples)[-limit:]


def _run(name: str) -> Run:
    """By its id only: a path is never followed."""
    if name not in {path.name for path in store.runs_dir().glob("*") if path.is_dir()}:
        raise NotFound(f"no run {name!r}", where="id")
    return store.open_run(store.runs_dir() / name)


def _entry(run: Run) -> Object:
    config = store.read_json(run.config)
    outcome, result = _json(run.path / "outcome.json"), _json(run.path / "result.json")
    last, changed = _last(run.metrics)
    settings = config.get("settings") or {}
    done = bool(result) or run.report.exists()
    alive = changed is not None and time.time() - changed < STALE
    begun = changed is None and time.time() - config.get("created", 0) < STALE
    return {
        "id": run.id,
        "object": "run",
        "kind": config.get("kind", "?"),
        "created": config.get("created", 0),
        "updated": changed,
        "state": "finished" if done else "running" if alive or begun else "stopped",
        "model": Path(str(settings.get("model") or "")).name,
        "out": Path(str(settings.get("out") or "")).name,
        "data": Path(str(settings.get("data") or "")).name,
        "steps": settings.get("steps") or None,
        "last": last,
        "verdict": (outcome or {}).get("verdict", ""),
    }


def _last(path: Path) -> tuple[Object | None, float | None]:
    """The last whole line, and when it was written."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")
        for line in reversed(lines):
            if line.startswith(b"{") and line.endswith(b"}"):
                return json.loads(line), path.stat().st_mtime
        return None, path.stat().st_mtime
    except (OSError, json.JSONDecodeError):
        return None, None


def _json(path: Path) -> Object | None:
    return store.read_json(path) if path.exists() else None
