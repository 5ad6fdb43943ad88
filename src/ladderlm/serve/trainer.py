"""Makes fine-tuning jobs come true: each is a child process of the same command line, niced, one at a time.

A child outlives the server. It holds a lock on a file in its job's folder as long as it lives, which is how the next
server knows it again; one that died is begun again with --resume, from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import re
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ladderlm import store
from ladderlm.errors import LadderError, StorageError
from ladderlm.serve import files, jobs, processes
from ladderlm.serve.jobs import Job
from ladderlm.types import Run

POLL, IDLE = 0.5, 5.0  # seconds between looks
GRACE = {"cancelled": 20.0, "paused": 300.0}  # seconds until a process that was asked to end is killed
TRIES = 3  # deaths without a step of progress
_PROGRESS = re.compile(r"^\w+: [\d,.]+/[\d,.]+ ")
_NAMES = {"loss": "train_loss", "held_out_loss": "valid_loss", "reward": "train_reward", "kl": "kl", "lr": "lr",
          "tokens": "tokens", "tokens_per_second": "tokens_per_second"}  # fmt: skip
_log = logging.getLogger(__name__)


class Trainer:
    """`at_once`: jobs that run side by side."""

    def __init__(self, at_once: int = 1) -> None:
        self._at_once = at_once
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._claim = contextlib.ExitStack()
        self._claimed = False
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._asked: dict[str, float] = {}  # when a process was asked to end

    def start(self) -> None:
        """Takes up what is unfinished, now and later."""
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, name="serve-trainer", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something is to be done. From any thread."""
        self._wake.set()

    def stop(self) -> None:
        """Leaves the children running."""
        self._ended.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(10)
        self._claim.close()
        self._claimed = False

    def _run(self) -> None:
        while not self._ended.is_set():
            busy = False
            try:
                found = jobs.unfinished()
                if found and self._claimed_all():
                    busy = True
                    self._advance(found)
            except Exception:  # whatever it was, the others go on
                _log.exception("fine-tuning stands still")
            self._wake.wait(POLL if busy else IDLE)
            self._wake.clear()

    def _claimed_all(self) -> bool:
        """Whether this process sees to the jobs of the workspace: one does."""
        if not self._claimed:
            with contextlib.suppress(StorageError):
                self._claim.enter_context(store.lock(store.home() / "jobs", timeout=0))
                self._claimed = True
        return self._claimed

    def _advance(self, found: Sequence[Job]) -> None:
        running = 0
        for job in found:
            child = self._children.get(job.id)
            if child is not None:
                child.poll()  # so that it does not stay as a zombie
            if processes.alive(job.folder):
                running += 1
                report(job)
                if job.status in GRACE:
                    self._end(job)
            elif job.status in GRACE:
                self._ended_as_asked(job)
            elif job.status == "running":
                self._died(job)
        for job in found:
            if job.status in jobs.WAITING and running < self._at_once and not processes.alive(job.folder):
                running += 1
                self._launch(job)

    def _end(self, job: Job) -> None:
        """Asks once, and does not wait for ever."""
        first = job.id not in self._asked
        asked = self._asked.setdefault(job.id, time.monotonic())
        late = time.monotonic() - asked > GRACE[job.status]
        if first or late:
            processes.kill(job.folder, at_once=late)

    def _ended_as_asked(self, job: Job) -> None:
        self._forget(job.id)
        report(job)
        if job.status == "paused" and _result(job) is not None:  # it was quicker
            succeed(job)
            return
        jobs.update(job.id, lambda db, now: jobs.change(db, now.id, pid=None))
        if job.status == "cancelled":
            jobs.clear(job)

    def _died(self, job: Job) -> None:
        """It came to its end, or to some other."""
        child = self._children.get(job.id)
        code = None if child is None else child.poll()
        self._forget(job.id)
        report(job)
        if _result(job) is not None:
            succeed(job)
            return
        why = complaint(job)
        if why and (code is None or code > 0) and code not in (130, 143):
            fail(job, why)
            return
        step = _last_step(job)
        tries = job.state.get("tries", 0) + 1 if step <= job.state.get("died_at", -1) else 1
        if tries > TRIES:
            fail(job, why or f"the process died {TRIES} times without a step between")
            return

        def again(db: sqlite3.Connection, now: Job) -> None:
            if now.status == "running":
                jobs.change(db, now.id, "queued", pid=None, tries=tries, died_at=step)
                jobs.tell(db, now.id, f"The process died after step {step}; it is begun again from its checkpoint",
                          level="warn")  # fmt: skip

        jobs.update(job.id, again)

    def _forget(self, id: str) -> None:
        self._asked.pop(id, None)
        if (child := self._children.pop(id, None)) is not None:
            child.poll()

    def _launch(self, job: Job) -> None:
        run = job.run
        told: dict[str, Any] = {"run": run.id} if run is not None and run.config.exists() else {}
        argv = [job.verb, f"--resume={run.id}", "--json"] if told and run is not None else list(job.state["argv"])

        def mark(db: sqlite3.Connection, now: Job) -> None:
            if now.status not in jobs.WAITING:
                raise StorageError("no longer wanted", where=now.id)
            log = now.folder / processes.LOG
            since = log.stat().st_size if log.exists() else 0
            jobs.change(db, now.id, "running", log_since=since, **told)
            jobs.tell(db, now.id, "Fine-tuning job goes on" if told else "Fine-tuning job started")

        with contextlib.suppress(StorageError):
            jobs.update(job.id, mark)
            child = processes.launch(job.folder, argv)
            self._children[job.id] = child
            jobs.update(job.id, lambda db, now: jobs.change(db, now.id, pid=child.pid))


# --- What a run tells ---------------------------------------------------------------------------------------------


def report(job: Job) -> None:
    """New rows of the run's metrics, and new lines of its log, become events."""
    run = job.run
    rows = [row for row in _metrics(run) if row.get("step", 0) > job.state.get("step", 0)]
    text, read = _new_text(job.folder / processes.LOG, job.state.get("read", 0))
    lines = [line for line in text.splitlines() if line.strip() and not _PROGRESS.match(line)]
    if not rows and not text and (run is None or job.state.get("run")):
        return
    told: dict[str, Any] = {"read": read} | ({"run": run.id} if run is not None else {})
    if rows:
        told |= {"step": rows[-1]["step"], "train_loss": _finite(rows[-1].get("loss")), **_finish(run, rows[-1])}

    def work(db: sqlite3.Connection, now: Job) -> None:
        jobs.change(db, now.id, **told)
        for line in lines:
            jobs.tell(db, now.id, line[:1000])
        for row in rows:
            loss = row.get("loss")
            message = f"Step {row['step']}" + (f": training loss={loss:.4f}" if isinstance(loss, float) else "")
            jobs.tell(db, now.id, message, figures(row), type="metrics")

    jobs.update(job.id, work)


def figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics under the names of the API. JSON knows no infinity."""
    found = {theirs: _finite(row[ours]) for ours, theirs in _NAMES.items() if isinstance(row.get(ours), int | float)}
    return {"step": row["step"], **found}


def _metrics(run: Run | None) -> list[dict[str, Any]]:
    if run is None:
        return []
    with contextlib.suppress(LadderError, OSError):
        return store.read_jsonl(run.metrics)
    return []


def _new_text(path: Path, start: int) -> tuple[str, int]:
    """Whole lines that came since `start`, and where the next ones begin."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
    except OSError:
        return "", start
    data = data[: data.rfind(b"\n") + 1]
    return data.decode("utf-8", "replace"), start + len(data)


def _finish(run: Run | None, row: Mapping[str, Any]) -> dict[str, float]:
    """When the last step will be done, by the steps so far."""
    newest = sorted(run.checkpoints.glob("step-*/state.json"))[-1:] if run else []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        total = json.loads(newest[0].read_text())["total"] if newest else None
        if total:
            return {"estimated_finish": time.time() + row["seconds"] / row["step"] * (total - row["step"])}
    return {}


def _last_step(job: Job) -> int:
    rows = _metrics(job.run)
    return int(rows[-1]["step"]) if rows else 0


def _result(job: Job) -> dict[str, Any] | None:
    run = job.run
    with contextlib.suppress(OSError, ValueError):
        if run is not None:
            return dict(json.loads((run.path / "result.json").read_text()))
    return None


def complaint(job: Job) -> str:
    """The command's own last word since it was begun, if it was one of failure; that it was stopped is none."""
    text, _ = _new_text(job.folder / processes.LOG, job.state.get("log_since", 0))
    lines = [line for line in text.splitlines() if line.strip()]
    mark = f"ladderlm {job.verb}: "
    for line in reversed(lines[-50:]):
        if line.startswith(mark):
            return "" if line.startswith(f"{mark}stopped after step") else line.removeprefix(mark)[:2000]
    return lines[-1][:2000] if lines and "Traceback" in text else ""


def succeed(job: Job) -> None:
    """The result is a model of this server."""
    result, run = _result(job), job.run
    assert result is not None and run is not None  # noqa: PT018
    scores = result.get("scores", {})

    def work(db: sqlite3.Connection, now: Job) -> None:
        made = [files.put_text(_table(run), "step_metrics.csv", "fine-tune-results", now.user, db).id]
        if run.report.exists():
            text = run.report.read_text(encoding="utf-8")
            made.append(files.put_text([text], "report.md", "fine-tune-results", now.user, db).id)
        jobs.change(
            db, now.id, "succeeded", pid=None, run=run.id, fine_tuned_model=now.state["out"], finished_at=time.time(),
            steps=result["steps"], trained_tokens=result["tokens"], seconds=result["seconds"],
            train_loss=_finite(result["loss"]), valid_loss=_finite(scores.get("held_out_loss")), result_files=made,
        )  # fmt: skip
        jobs.tell(db, now.id, f"New fine-tuned model created: {now.state['out']}")
        jobs.tell(db, now.id, "The job has successfully completed", {"verdict": scores.get("verdict")})

    jobs.update(job.id, work)
    jobs.clear(job)


def fail(job: Job, why: str) -> None:
    def work(db: sqlite3.Connection, now: Job) -> None:
        error = {"code": "training_failed", "message": why, "param": None}
        jobs.change(db, now.id, "failed", pid=None, error=error, finished_at=time.time())
        jobs.tell(db, now.id, f"The job failed: {why}", level="error")

    jobs.update(job.id, work)
    jobs.clear(job)


def _table(run: Run) -> Iterator[str]:
    """The run's metrics as CSV."""
    rows = [figures(row) for row in _metrics(run)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows(rows)
    yield out.getvalue()


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
