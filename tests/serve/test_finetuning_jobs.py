"""Fine-tuning jobs, through the official client: they really train, and the result is chatted with."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from live import served

from ladderlm import store
from ladderlm.data.shapes import conversation
from ladderlm.data.tables import read_table
from ladderlm.errors import FormatError, UsageError
from ladderlm.serve import accounts, jobs, personal, processes, training
from ladderlm.serve.models import Models
from ladderlm.serve.wire.jobs import JobBody, Reinforcement

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
ROWS = [{"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "ja"}]}
        for i in range(24)]  # fmt: skip
PAIRS = [{"input": {"messages": [{"role": "user", "content": f"say {i}"}]},
          "preferred_output": [{"role": "assistant", "content": "ja"}],
          "non_preferred_output": [{"role": "assistant", "content": "no"}]} for i in range(24)]  # fmt: skip
ASKED = [{"messages": [{"role": "system", "content": "short"}, {"role": "user", "content": f"say {i}"}],
          "right": {"word": "ja"}} for i in range(24)]  # fmt: skip
CHECK = {"type": "string_check", "name": "says ja", "input": "{{sample.output_text}}", "operation": "ilike",
         "reference": "{{item.right.word}}"}  # fmt: skip
QUICK = {"threads": 1, "max_length": 100}


@pytest.fixture
def base(workspace: Path) -> str:
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    from test_folder import save

    save(store.models_dir() / "base")
    return "base"


@pytest.fixture
def client(base: str) -> Iterator[openai.OpenAI]:
    with served(Models((base,))) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        for job in jobs.unfinished():
            processes.end(job.folder)


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def uploaded(client: openai.OpenAI, rows: list[dict[str, Any]] | bytes) -> str:
    data = rows if isinstance(rows, bytes) else lines(rows)
    return client.files.create(file=("train.jsonl", data), purpose="fine-tune").id


def begun(client: openai.OpenAI, rows: Any, *, settings: dict[str, Any] | None = None, **asked: Any) -> Any:
    extra = {"settings": QUICK | (settings or {})}
    file = uploaded(client, rows)
    return client.fine_tuning.jobs.create(model="base", training_file=file, extra_body=extra, **asked)


def strictly(made: Any) -> Any:
    """The same, if it is what the client's types say; their list of states lacks "paused", which their API has."""
    told = made.model_dump()
    if told.get("status") == "paused":
        told["status"] = "queued"
    type(made).model_validate(told, strict=True)
    return made


def until(client: openai.OpenAI, id: str, *states: str, seconds: float = 120) -> Any:
    late = time.monotonic() + seconds
    while (job := client.fine_tuning.jobs.retrieve(id)).status not in (states or ("succeeded", "failed", "cancelled")):
        assert time.monotonic() < late, (job, [e.message for e in client.fine_tuning.jobs.list_events(id)])
        time.sleep(0.1)
    return strictly(job)


def stepped(client: openai.OpenAI, id: str, steps: int, seconds: float = 60) -> None:
    """Waits until so many steps were told."""
    late = time.monotonic() + seconds
    while len([e for e in client.fine_tuning.jobs.list_events(id, limit=100).data if e.type == "metrics"]) < steps:
        assert time.monotonic() < late, client.fine_tuning.jobs.retrieve(id)
        time.sleep(0.05)


@pytest.mark.slow
def test_supervised(client: openai.OpenAI) -> None:
    held = uploaded(client, ROWS[:6])
    made = strictly(begun(
        client, ROWS, validation_file=held, suffix="my ../ model", seed=7, metadata={"a": "b"},
        method={"type": "supervised", "supervised": {"hyperparameters": {
            "n_epochs": 20, "batch_size": 8, "learning_rate_multiplier": 20.0}}},
    ))  # fmt: skip
    assert (made.status, made.seed, made.method.type) == ("queued", 7, "supervised")
    assert made.hyperparameters.n_epochs == 20
    assert made.estimate["records"] == 24  # type: ignore[index]
    assert made.estimate["memory_bytes"] > 0  # type: ignore[index]
    job = until(client, made.id)
    assert job.status == "succeeded", job.error
    assert re.fullmatch(r"my-+model-\w{8}", job.fine_tuned_model or "")
    assert job.trained_tokens > 0
    assert job.finished_at >= job.created_at
    assert list(jobs.folder_of(made.id).glob("*_file.*")) == [], "a copy of what a user may delete"
    events = [strictly(e) for e in client.fine_tuning.jobs.list_events(made.id, limit=100)]
    steps = [e.data for e in events if e.type == "metrics"]
    assert steps[0]["step"] == len(steps) >= 50  # the latest first
    assert steps[0]["train_loss"] < steps[-1]["train_loss"]
    assert events[0].message == "The job has successfully completed"
    checkpoint = strictly(client.fine_tuning.jobs.checkpoints.list(made.id).data[0])
    assert checkpoint.fine_tuned_model_checkpoint == job.fine_tuned_model
    assert checkpoint.metrics.full_valid_loss is not None
    assert job.fine_tuned_model in [m.id for m in client.models.list()]
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "say 3"}], temperature=0, max_tokens=2
    )
    assert answer.choices[0].message.content == "ja"
    table = client.files.content(job.result_files[0]).text.splitlines()
    assert table[0].startswith("step,train_loss")
    assert len(table) == len(steps) + 1
    assert "#" in client.files.content(job.result_files[1]).text
    assert made.id in [j.id for j in client.fine_tuning.jobs.list(limit=5)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpo", "reinforcement"])
def test_preferences_and_rewards(client: openai.OpenAI, kind: str) -> None:
    method: dict[str, Any] = {"dpo": {"hyperparameters": {"beta": 0.2}}}
    settings: dict[str, Any] = {"steps": 2}
    if kind == "reinforcement":
        method = {"reinforcement": {"grader": CHECK, "hyperparameters": {"batch_size": 2}}}
        settings |= {"samples": 2, "max_tokens": 8}
    made = begun(client, PAIRS if kind == "dpo" else ASKED, settings=settings, method={"type": kind, **method})
    job = until(client, strictly(made).id)
    assert job.status == "succeeded", job.error
    assert job.method.type == kind
    answer = client.completions.create(model=job.fine_tuned_model, prompt="a", max_tokens=1)
    assert answer.usage.completion_tokens == 1


@pytest.mark.slow
def test_pause_resume_and_cancel(client: openai.OpenAI) -> None:
    made = begun(client, ROWS, settings={"steps": 100_000})
    stepped(client, made.id, 2)
    assert client.fine_tuning.jobs.retrieve(made.id).estimated_finish > time.time()
    assert client.fine_tuning.jobs.pause(made.id).status == "paused"
    folder = jobs.folder_of(made.id)
    late = time.monotonic() + 30
    while processes.alive(folder):
        assert time.monotonic() < late
        time.sleep(0.05)
    run = jobs.get(made.id, accounts.EVERYBODY).run
    assert run is not None
    done = store.read_jsonl(run.metrics)[-1]["step"]
    assert f"step-{done:08d}" in [p.name for p in run.checkpoints.iterdir()]
    assert until(client, made.id, "paused").status == "paused"
    client.fine_tuning.jobs.resume(made.id)
    stepped(client, made.id, done + 2)
    assert client.fine_tuning.jobs.cancel(made.id).status == "cancelled"
    late = time.monotonic() + 30
    while processes.alive(folder):
        assert time.monotonic() < late
        time.sleep(0.05)
    with pytest.raises(openai.BadRequestError, match="the job is cancelled"):
        client.fine_tuning.jobs.resume(made.id)


BAD = {
    "broken JSON": (lines(ROWS[:3]) + b"{\n", "line 4: broken JSON"),
    "a row without messages": (lines(ROWS[:2]) + b'{"x": 1}\n', "line 3: unknown layout"),
    "an unknown role": (lines(ROWS[:1]).replace(b'"user"', b'"boss"'), "line 1: unknown role 'boss'"),
    "nothing said": (lines([{"messages": ROWS[0]["messages"][:1]}]), "line 1: the assistant says nothing"),
    "an empty file": (b"", "the file is empty"),
    "no text": (b"\xff\xfe\x00\x01", "UTF-8"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_by_line_and_reason(client: openai.OpenAI, what: str) -> None:
    data, message = BAD[what]
    with pytest.raises(openai.BadRequestError) as refused:
        begun(client, data)
    assert message in str(refused.value)
    assert refused.value.param == "training_file"
    assert list((store.home() / "jobs").glob("ftjob-*")) == []


@pytest.mark.slow
def test_what_only_the_tokenizer_knows_fails_the_job_with_line_and_reason(client: openai.OpenAI) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]}
    job = until(client, begun(client, [*ROWS, long]).id)
    assert job.status == "failed"
    assert re.search(r"training_file.jsonl:25: \d+ tokens, more than", job.error.message)
    assert next(e.level for e in client.fine_tuning.jobs.list_events(job.id)) == "error"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model": "nothing"}, "no model 'nothing'"),
        ({"settings": {"lerning_rate": 1}}, "lerning_rate"),
        ({"settings": {"samples": 4}}, "no such setting"),
        ({"training_file": "file-0"}, "no file"),
        ({"method": {"type": "reinforcement"}}, "needs a grader"),
        ({"method": {"type": "dpo"}}, "not preference"),
        ({"hyperparameters": {"n_epochs": 0}}, "n_epochs"),
        ({"settings": {"licence": "--out=/x"}, "suffix": "--replace"}, ""),
    ],
)
def test_what_cannot_be_asked_for(client: openai.OpenAI, asked: dict[str, Any], message: str) -> None:
    body = {"model": "base", "training_file": uploaded(client, ROWS), **asked}
    if not message:  # words that look like flags are values all the same
        made = client.post("/fine_tuning/jobs", body=body, cast_to=object)
        argv = jobs.get(made["id"], accounts.EVERYBODY).state["argv"]  # type: ignore[index]
        assert "--licence=--out=/x" in argv
        assert re.fullmatch(r"--out=replace-\w{8}", next(a for a in argv if a.startswith("--out")))
        client.fine_tuning.jobs.cancel(made["id"])  # type: ignore[index]
        return
    with pytest.raises(openai.APIStatusError) as refused:
        client.post("/fine_tuning/jobs", body=body, cast_to=object)
    assert refused.value.status_code in (400, 404)
    assert message in str(refused.value)


def _serve(base: str) -> tuple[subprocess.Popen[str], openai.OpenAI]:
    command = [sys.executable, "-m", "ladderlm", "serve", base, "--port", "0", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    text = ""
    while not text.rstrip().endswith("}"):
        text += child.stdout.readline()  # type: ignore[union-attr]
    url = json.loads(text)["url"]
    return child, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("too", [False, True], ids=["the server alone", "the job with it"])
def test_a_job_outlives_the_server(base: str, workspace: Path, too: bool) -> None:
    """Killed, and begun again: a job that goes on is known again, one that died goes on from its checkpoint."""
    server, client = _serve(base)
    try:
        made = begun(client, ROWS, settings={"steps": 40})
        waiting = begun(client, ROWS, settings={"steps": 1})
        stepped(client, made.id, 2)
        server.send_signal(signal.SIGKILL)
        server.wait()
        folder = jobs.folder_of(made.id)
        pid = int((folder / "pid").read_text())
        if too:
            processes.end(folder)
            assert not processes.alive(folder)
        with closing(sqlite3.connect(workspace / "ladderlm.sqlite")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        server, client = _serve(base)
        job = until(client, made.id)
        assert job.status == "succeeded", job.error
        told = list(client.fine_tuning.jobs.list_events(made.id, limit=100))
        assert any("begun again" in e.message for e in told) == too
        assert (int((folder / "pid").read_text()) != pid) == too
        assert max(e.data["step"] for e in told if e.type == "metrics") == 40
        assert until(client, waiting.id).status == "succeeded"
    finally:
        server.kill()
        server.wait()


def test_the_child_is_niced_and_ends_with_all_it_started(workspace: Path) -> None:
    folder = store.make_dir(jobs.folder_of("ftjob-x"))
    child = processes.launch(folder, ["serve", "echo", "--port=0"])
    assert processes.alive(folder)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) >= processes.NICE
    assert os.getpgid(child.pid) == child.pid
    with pytest.raises(OSError, match="a process already"):
        processes.launch(folder, ["doctor"])
    processes.end(folder)
    assert not processes.alive(folder)
    child.wait()


@pytest.mark.slow
def test_an_erased_users_job_ends_and_leaves_nothing(client: openai.OpenAI, workspace: Path) -> None:
    made = begun(client, ROWS, settings={"steps": 100_000})
    stepped(client, made.id, 1)
    run = jobs.get(made.id, accounts.EVERYBODY).run
    assert run is not None
    gone = personal.erase("local")
    assert (gone["jobs"], gone["files"]) == (1, 1)
    assert not processes.alive(jobs.folder_of(made.id))
    assert not run.path.exists()
    assert not jobs.folder_of(made.id).exists()


# --- Rows and rates -----------------------------------------------------------------------------------------------


def test_rows_of_the_api_become_ours(tmp_path: Path) -> None:
    pair = training.preference(PAIRS[0])
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(pair) + "\n" + json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    records = read_table(path).records
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in records] == [("say 0", "ja", "no"), ("a", "b", "c")]
    graded = training.grader(Reinforcement.model_validate({"grader": CHECK}))(ASKED[0])
    path.write_text(json.dumps(graded) + "\n")
    (record,) = read_table(path).records
    assert [m.role for m in conversation(record, answer=False).messages] == ["system", "user"]
    from ladderlm.train.checks import check

    assert check(record, "Well, JA!") == 1.0
    assert check(record, "no") == 0.0


@pytest.mark.parametrize(
    ("operation", "right", "wrong"),
    [("eq", "a.b", "axb"), ("ne", "x", "a.b"), ("like", "an a.b here", "A.B"), ("ilike", "an A.B here", "axb")],
)
def test_string_checks(operation: str, right: str, wrong: str) -> None:
    pattern = training.pattern(operation, "a.b")
    assert re.fullmatch(pattern, right, re.DOTALL)
    assert not re.fullmatch(pattern, wrong, re.DOTALL)


def test_graders_that_cannot_be(tmp_path: Path) -> None:
    other = {**CHECK, "input": "{{item.x}}"}
    with pytest.raises(UsageError, match="only the whole answer"):
        training.grader(Reinforcement.model_validate({"grader": other}))
    convert = training.grader(Reinforcement.model_validate({"grader": CHECK}))
    with pytest.raises(FormatError, match=r"no right\.word"):
        convert({"messages": ASKED[0]["messages"]})
    with pytest.raises(FormatError, match="end with one of the user"):
        convert({**ASKED[0], "messages": ROWS[0]["messages"]})
    own = training.grader(Reinforcement.model_validate({"grader": {"type": "checks"}}))
    assert own({"prompt": "2+2?", "answer": 4})["fields"] == {"prompt": "2+2?", "answer": "4"}
    with pytest.raises(FormatError, match="nothing that an answer"):
        own({"prompt": "2+2?"})


def test_the_rates_that_are_multiplied_are_those_of_the_commands() -> None:
    pytest.importorskip("torch")
    from ladderlm.train import finetune

    assert training.USUAL["supervised"] == (finetune.LORA_LR, finetune.FULL_LR)
    for kind, module in (("dpo", "dpo"), ("reinforcement", "grpo")):
        source = inspect.getsource(importlib.import_module(f"ladderlm.train.{module}"))
        found = re.search(r"lora_lr=([\de-]+), full_lr=([\de-]+)", source)
        assert found is not None
        assert training.USUAL[kind] == (float(found[1]), float(found[2]))


def test_every_setting_is_one_of_the_command(tmp_path: Path) -> None:
    """A command line that is built here is understood there."""
    from ladderlm.cli.args import parse
    from ladderlm.train.settings import AlignConfig, FinetuneConfig

    material = training.Material(tmp_path / "a.jsonl", None, 10, 20.0)
    settings = {"method": "rslora", "rank": 4, "cut": True, "steps": 3, "lr": 0.1, "skip_bad": True}
    hyper = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 2.0}
    body = JobBody.model_validate({"model": "m", "training_file": "f", "settings": settings, "hyperparameters": hyper})
    verb, *argv = training.command(body, "m", material, "out", 3)
    found = parse(verb, FinetuneConfig, argv)
    assert (found.method, found.cut, found.steps, found.epochs, found.batch_tokens) == ("rslora", True, 3, 2.0, 80)
    assert (found.seed, found.out, found.lr) == (3, "out", 0.1)  # what is said itself goes before its multiple
    grader = {"type": "reinforcement", "reinforcement": {"grader": CHECK, "hyperparameters": hyper}}
    body = JobBody.model_validate({"model": "m", "training_file": "f", "method": grader, "settings": {"samples": 4}})
    verb, *argv = training.command(body, "m", material, "out", 3)
    aligned = parse(verb, AlignConfig, argv)
    assert (aligned.objective, aligned.prompts, aligned.samples, aligned.lr) == ("grpo", 4, 4, 4e-4)


def test_memory_is_worked_out_by_the_trainers_own_constants() -> None:
    loss, memory = pytest.importorskip("ladderlm.nn.loss"), pytest.importorskip("ladderlm.train.memory")
    assert (training.BLOCK, training.GAPS) == (loss.ROWS, memory.GROWTH)
