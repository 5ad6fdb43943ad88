"""What deploy/ and the docs tell people to run is there to be run: commands, flags, scripts, manifests."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ladderlm.cli import args
from ladderlm.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SLURM = DEPLOY / "slurm" / "pretrain.sbatch"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# --- Commands -----------------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `ladderlm ...` in a shell text; a variable with a default counts as that."""
    defaults = dict(re.findall(r"^(\w+)=\$\{\1:-(.*?)\}", text, re.M))
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = re.sub(r"\$(\w+)", lambda m: defaults.get(m[1], m[0]), line)
        for part in re.split(r"&&|\|\||\||;", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue  # prose of a comment
            words = words[1:] if words[:1] == ["exec"] else words
            if words[:1] in (["ladderlm"], ["srun"], ["torchrun"]) and "ladderlm" in words:
                yield words[words.index("ladderlm") + 1 :]


def told() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            found += [(page.name, argv) for argv in commands(block)]
    for file in (SLURM, *MANIFESTS):
        found += [(file.name, argv) for argv in commands(file.read_text())]
    return found


class Understood(Exception):
    """The command line was parsed: nothing more shall happen."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = args.Parser.parse_args

    def parse_args(self: args.Parser, given: Any = None, namespace: Any = None) -> NoReturn:
        parse(self, given, namespace)
        raise Understood

    monkeypatch.setattr(args.Parser, "parse_args", parse_args)


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize(("where", "argv"), told(), ids=lambda x: x if isinstance(x, str) else " ".join(x)[:60])
def test_every_command_that_is_told_can_be_given(where: str, argv: list[str]) -> None:
    with pytest.raises(Understood):
        raise AssertionError(f"{where}: ladderlm {shlex.join(argv)} ended with {main(argv)}")


def test_commands_are_found_and_wrong_ones_are_seen(parse_only: None) -> None:
    found = {where for where, _ in told()}
    assert {
        "README.md",
        "data.md",
        "build.md",
        "pretrain.sbatch",
        "pretrain-job.yaml",
        "pretrain-trainjob.yaml",
    } <= found
    text = "OPTIONS=${OPTIONS:---steps 5}\nsrun torchrun -m ladderlm pretrain \\\n  x $OPTIONS || status=$?\n"
    assert list(commands(text)) == [["pretrain", "x", "--steps", "5"]]
    with pytest.raises(SystemExit):
        main(["pretrain", "x", "--no-such-flag", "5"])
    assert main(["no-such-verb"]) == 2


# --- Manifests ----------------------------------------------------------------------------------------------------


def documents(file: Path) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(file.read_text()))


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod that a manifest describes."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda f: f.name)
def test_manifests_hold_together(file: Path) -> None:
    found = documents(file)
    assert all({"apiVersion", "kind", "metadata", "spec"} <= d.keys() for d in found)
    inside = [pod for d in found for pod in pods(d)]
    assert inside
    for pod in inside:
        assert pod["terminationGracePeriodSeconds"] >= 120
        volumes = {v["name"] for v in pod["volumes"]}
        for container in pod["containers"]:
            assert {m["name"] for m in container["volumeMounts"]} <= volumes
            assert {"startupProbe", "livenessProbe"} <= container.keys()
            script = container["args"][0]
            for shell in (script, *(container[p]["exec"]["command"][2] for p in ("startupProbe", "livenessProbe"))):
                subprocess.run(["sh", "-n", "-c", shell], check=True)
            assert "--resume" in script


def test_the_train_job_uses_the_runtime_beside_it() -> None:
    runtime, job = documents(DEPLOY / "kubernetes" / "pretrain-trainjob.yaml")
    assert {d["apiVersion"] for d in (runtime, job)} == {"trainer.kubeflow.org/v1alpha1"}
    assert (job["spec"]["runtimeRef"]["kind"], job["spec"]["runtimeRef"]["name"]) == (
        runtime["kind"], runtime["metadata"]["name"])  # fmt: skip
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    step = replicated["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    assert (step, replicated["name"], container["name"]) == ("trainer", "node", "node")
    asked = job["spec"]["trainer"]
    assert asked["numProcPerNode"] == asked["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    for document in documents(DEPLOY / "kubernetes" / "pretrain-job.yaml"):
        (container,) = next(pods(document))["containers"]
        assert {"requests", "limits"} <= container["resources"].keys()


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda f: f.name)
def test_a_pod_begins_goes_on_and_ends(file: Path, tmp_path: Path) -> None:
    """The script of the container, with a `ladderlm` that writes down what it was asked."""
    (container,) = next(pods(documents(file)))["containers"]
    fake(tmp_path, "ladderlm", 'echo "$@"')
    fake(tmp_path, "torchrun", 'echo "$@"')

    def start() -> str:
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LADDERLM_HOME": str(tmp_path / "home")}
        done = subprocess.run(["sh", "-c", container["args"][0]], env=env, capture_output=True, text=True, check=True)
        return done.stdout

    assert "--resume  --depth" in start()
    run = tmp_path / "home" / "runs" / "pretrain-1"
    run.mkdir()
    assert "--resume  --depth" in start()  # it broke off before there was anything to go on with
    (run / "config.json").touch()
    assert f"--resume {run} --depth" in start()
    (run / "result.json").touch()
    assert start() == ""


# --- Slurm --------------------------------------------------------------------------------------------------------


def fake(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_slurm_script_begins_goes_on_asks_for_more_time_and_ends(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    fake(tmp_path, "srun", 'echo "srun $@"; exit 143')
    fake(tmp_path, "scontrol", 'if [ "$1" = show ]; then echo node1; echo node2; else echo "scontrol $@"; fi')

    def submit(left: int = 9999, restarts: int = 0) -> tuple[int, str]:
        env = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "DATA": "shards", "OUT": "base",
            "WORK": str(tmp_path / "work"), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "32", "SLURM_RESTART_COUNT": str(restarts),
            "SLURM_JOB_END_TIME": str(int(time.time()) + left),
        }  # fmt: skip
        done = subprocess.run(["bash", str(SLURM)], env=env, capture_output=True, text=True, check=False)
        assert not done.stderr
        return done.returncode, done.stdout

    code, out = submit()
    assert code == 143  # something was wrong: no requeue
    assert "--nnodes 2 --nproc-per-node 8" in out
    assert "--rdzv-endpoint node1:29500 -m ladderlm pretrain shards --out base --resume  --depth" in out
    assert "requeue" not in out
    run = tmp_path / "work" / "jobs" / "7" / "runs" / "pretrain-1"
    run.mkdir()
    (run / "config.json").touch()
    code, out = submit(left=100, restarts=3)
    assert f"going on with {run}, restart 3" in out
    assert (
        f"--rdzv-id 7-3 --rdzv-endpoint node1:29500 -m ladderlm pretrain shards --out base --resume {run} --depth"
        in out
    )
    assert "scontrol requeue 7" in out
    assert "requeue" not in submit(left=100, restarts=50)[1]
    (run / "result.json").touch()
    assert submit() == (0, "done before: base\n")
    assert subprocess.run(
        ["bash", str(SLURM)], env={"PATH": os.environ["PATH"]}, capture_output=True, check=False
    ).returncode
