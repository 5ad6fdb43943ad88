"""Fine-tuning jobs: rows in the database, and what a request may do to them. `trainer.py` makes them come true.

`status` says what shall be: a job that was cancelled or paused may still have a process, which the trainer then ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm import store
from ladderlm.errors import NotFound, UsageError
from ladderlm.serve import files, processes, training
from ladderlm.serve.accounts import Who
from ladderlm.serve.files import File
from ladderlm.serve.wire.jobs import JobBody, JobObject
from ladderlm.types import Run

WAITING = ("validating_files", "queued")
OVER = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Job:
    """`state`: the request, the command, the run it became, and what came of it."""

    id: str
    user: str
    key: str
    created: float
    status: str
    state: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return folder_of(self.id)

    @property
    def verb(self) -> str:
        return str(self.state["argv"][0])

    @property
    def run(self) -> Run | None:
        """The run folder that the command made, once it has made one."""
        if name := self.state.get("run"):
            return Run(store.runs_dir() / name)
        for config in sorted(store.runs_dir().glob(f"{self.verb}-*/config.json")):
            with contextlib.suppress(OSError, ValueError):
                if json.loads(config.read_text())["settings"]["data"] == self.state["argv"][1]:
                    return Run(config.parent)
        return None


def folder_of(id: str) -> Path:
    return store.home() / "jobs" / id


# --- What a request may do ----------------------------------------------------------------------------------------


def create(who: Who, body: JobBody, reference: str) -> Job:
    """Checks the data and queues the job. When this returns it survives the server."""
    training_file, validation = _data(who, body, reference)
    id = f"ftjob-{secrets.token_hex(12)}"
    folder = store.make_dir(folder_of(id))
    try:
        material = training.prepare(body, folder, reference, training_file, validation)
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        out = _name(body.suffix or Path(reference).name.rpartition("+")[2], id)
        argv = training.command(body, reference, material, out, seed)
        told = training.estimate(body, material, reference, pace(body.kind, body.model))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    state = {"body": body.model_dump(exclude_none=True), "argv": argv, "out": out, "seed": seed,
             "kind": body.kind, "estimate": told.model_dump()}  # fmt: skip
    now = time.time()
    with store.transaction() as db:
        db.execute(
            "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?)", (id, who.user, who.key, now, "queued", json.dumps(state))
        )
        tell(db, id, f"Created fine-tuning job: {id}")
        tell(db, id, f"Files validated, {material.records:,} rows; the job is queued", told.model_dump())
    return get(id, who)


def _data(who: Who, body: JobBody, reference: str) -> tuple[File, File | None]:
    """The files that a request names."""
    if os.name != "posix":
        raise UsageError("jobs need Linux or macOS", where="model", cure="ladderlm finetune, in a shell")
    if "#" in reference or "://" in reference:
        cure = "ladderlm finetune --at URL tunes hosted models"
        raise UsageError("that model is not on this machine", where="model", cure=cure)
    validation = files.get(body.validation_file, who) if body.validation_file else None
    return files.get(body.training_file, who), validation


def _name(wanted: str, id: str) -> str:
    """A name of the result that nothing else has, and that is safe as a folder's."""
    base = re.sub(r"[^A-Za-z0-9_.]+|\.{2,}", "-", wanted).strip("-.") or "model"
    return f"{base[:40]}-{id[-8:]}"


def pace(kind: str, model: str) -> float | None:
    """Seconds that a token took in the last job of this kind and model."""
    with store.reading() as db:
        for row in db.execute("SELECT state FROM jobs WHERE status = 'succeeded' ORDER BY rowid DESC LIMIT 50"):
            state = json.loads(row["state"])
            if state["kind"] == kind and state["body"]["model"] == model and state.get("trained_tokens"):
                return float(state["seconds"]) / float(state["trained_tokens"])
    return None


def get(id: str, who: Who) -> Job:
    with store.reading() as db:
        return _read(db, id, who)


def listed(who: Who, after: str | None, limit: int) -> tuple[list[Job], bool]:
    """The latest first, and whether there are more."""
    where, values = ("1", list[Any]()) if who.admin else ("user = ?", [who.user])
    if after is not None:
        where += " AND rowid < (SELECT rowid FROM jobs WHERE id = ?)"
        values.append(get(after, who).id)
    query = f"SELECT * FROM jobs WHERE {where} ORDER BY rowid DESC LIMIT ?"  # noqa: S608
    with store.reading() as db:
        found = [_job(row) for row in db.execute(query, (*values, limit + 1))]
    return found[:limit], len(found) > limit


def cancel(id: str, who: Who) -> Job:
    job = _set(id, who, "cancelled", (*WAITING, "running", "paused"), "Fine-tuning job is cancelled")
    if not processes.alive(job.folder):
        clear(job)
    return job


def pause(id: str, who: Who) -> Job:
    """Ends the process at the next step, with a checkpoint."""
    return _set(id, who, "paused", (*WAITING, "running"), "Fine-tuning job is paused")


def resume(id: str, who: Who) -> Job:
    return _set(id, who, "queued", ("paused",), "Fine-tuning job goes on")


def _set(id: str, who: Who, status: str, allowed: Sequence[str], message: str) -> Job:
    with store.transaction() as db:
        job = _read(db, id, who)
        if job.status not in allowed:
            raise UsageError(f"the job is {job.status}", where="fine_tuning_job_id")
        told = {"finished_at": time.time()} if status in OVER else {}
        change(db, id, status, **told)
        tell(db, id, message)
        return _read(db, id, who)


def events(id: str, who: Who, after: str | None, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """The latest first, and whether there are more."""
    job = get(id, who)
    most = 2**62
    if after is not None:
        number = after.rpartition("-")[2]
        if not number.isdigit() or len(number) > 18:
            raise NotFound(f"no event {after!r}"[:80], where="after")
        most = int(number)
    query = "SELECT * FROM job_events WHERE job = ? AND id < ? ORDER BY id DESC LIMIT ?"
    with store.reading() as db:
        rows = db.execute(query, (job.id, most, limit + 1)).fetchall()
    found = [
        {"id": f"ftevent-{row['id']}", "created_at": int(row["time"]), "level": row["level"], "type": row["type"],
         "message": row["message"], "data": json.loads(row["data"])}
        for row in rows[:limit]
    ]  # fmt: skip
    return found, len(rows) > limit


def clear(job: Job) -> None:
    """Removes the copy of the data of a job that is over."""
    for path in job.folder.glob("*_file.*"):
        path.unlink(missing_ok=True)


def ids_of(user: str) -> list[str]:
    with store.reading() as db:
        return [row["id"] for row in db.execute("SELECT id FROM jobs WHERE user = ?", (user,))]


def forget(id: str) -> None:
    """Cancels a job whose owner goes, and removes what it was given to learn from, and its run."""
    with store.transaction() as db:
        job = _read(db, id)
        change(db, id, "cancelled", erase=True)
    run = job.run
    processes.end(job.folder)
    if run is not None:
        shutil.rmtree(run.path, ignore_errors=True)
    shutil.rmtree(job.folder, ignore_errors=True)


# --- Rows ---------------------------------------------------------------------------------------------------------


def _job(row: sqlite3.Row) -> Job:
    return Job(row["id"], row["user"], row["key"], row["created"], row["status"], json.loads(row["state"]))


def _read(db: sqlite3.Connection, id: str, who: Who | None = None) -> Job:
    row = db.execute("SELECT * FROM jobs WHERE id = ?", (id,)).fetchone()
    if row is None or (who is not None and not who.may_see(row["user"])):
        raise NotFound(f"no fine-tuning job {id!r}"[:80], where="fine_tuning_job_id")
    return _job(row)


def change(db: sqlite3.Connection, id: str, status: str | None = None, **told: Any) -> None:
    """Within a transaction: a new status, and what else is told of the job. Of one that was erased, nothing."""
    row = db.execute("SELECT * FROM jobs WHERE id = ?", (id,)).fetchone()
    if row is not None:
        state = json.dumps({**json.loads(row["state"]), **told})
        db.execute("UPDATE jobs SET status = ?, state = ? WHERE id = ?", (status or row["status"], state, id))


def tell(
    db: sqlite3.Connection, id: str, message: str, data: Mapping[str, Any] | None = None, *,
    level: str = "info", type: str = "message",
) -> None:  # fmt: skip
    row = (id, time.time(), level, type, message, json.dumps(data or {}))
    db.execute("INSERT INTO job_events (job, time, level, type, message, data) VALUES (?, ?, ?, ?, ?, ?)", row)


def unfinished() -> list[Job]:
    """Those that are to run, and those that may still have a process; the oldest first."""
    with store.reading() as db:
        query = "SELECT * FROM jobs WHERE status IN ('validating_files', 'queued', 'running') OR " \
                "json_extract(state, '$.pid') IS NOT NULL ORDER BY rowid"  # fmt: skip
        return [_job(row) for row in db.execute(query)]


def update(id: str, work: Callable[[sqlite3.Connection, Job], None]) -> None:
    """`work` on the job as it is now, in one transaction; nothing if it was erased."""
    with store.transaction() as db, contextlib.suppress(NotFound):
        work(db, _read(db, id))


# --- On the wire --------------------------------------------------------------------------------------------------


def to_wire(job: Job) -> JobObject:
    body = JobBody.model_validate(job.state["body"])
    hyper = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    hyper |= body.hyper.model_dump(exclude_none=True)
    method: dict[str, Any] = {"type": body.kind, body.kind: {"hyperparameters": hyper}}
    if body.method and body.method.reinforcement and body.kind == "reinforcement":
        method[body.kind]["grader"] = body.method.reinforcement.grader.model_dump(exclude_none=True)
    state = job.state
    run = state.get("run")
    finish = state.get("estimated_finish") if job.status == "running" else None
    return JobObject(
        id=job.id, created_at=int(job.created), finished_at=_whole(state.get("finished_at")), model=body.model,
        fine_tuned_model=state.get("fine_tuned_model"), organization_id=job.user, status=job.status,  # type: ignore[arg-type]
        training_file=body.training_file, validation_file=body.validation_file, hyperparameters=hyper, method=method,
        result_files=list(state.get("result_files", ())), trained_tokens=state.get("trained_tokens"),
        seed=state["seed"], error=state.get("error"), estimated_finish=_whole(finish), metadata=body.metadata,
        user_provided_suffix=body.suffix, estimate=state["estimate"], run=run,
        settings=body.settings.model_dump(exclude_none=True) if body.settings else None,
    )  # fmt: skip


def checkpoints(job: Job) -> list[dict[str, Any]]:
    """Those that can be chatted with: the result. What a running job goes on from lies in its run."""
    state = job.state
    if job.status != "succeeded":
        return []
    metrics = {
        "step": state["steps"],
        "train_loss": state.get("train_loss"),
        "full_valid_loss": state.get("valid_loss"),
    }
    return [{
        "id": f"ftckpt-{job.id.removeprefix('ftjob-')}", "created_at": int(state["finished_at"]),
        "fine_tuned_model_checkpoint": state["fine_tuned_model"], "fine_tuning_job_id": job.id,
        "step_number": state["steps"], "metrics": metrics,
    }]  # fmt: skip


def _whole(at: float | None) -> int | None:
    return None if at is None else int(at)
