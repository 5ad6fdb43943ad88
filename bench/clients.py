"""Other people's clients against `ladderlm serve` with the default model, unmodified.

1. Every route that a client has a word for: the official openai and anthropic clients, LangChain, LlamaIndex, `llm`.
   What comes back must say what was asked for. The table is written into docs/serve.md.
2. lm-evaluation-harness over /v1/completions with `tokenizer_backend=remote`, offline, on a multiple-choice task of our
   own: its log-likelihoods and answers against the engine's in this process.

The clients live in an environment of their own, whose Python CLIENTS_PYTHON names (this one by default):
pip install "lm-eval[api]" datasets langchain-openai langchain-anthropic llama-index-llms-openai-like
llama-index-embeddings-openai-like llm openai anthropic websockets
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladderlm import engine
from ladderlm.errors import MissingExtra
from ladderlm.models import open_model
from ladderlm.models.fetch import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "serve.md"
BEGIN, END = "<!-- clients: begin -->", "<!-- clients: end -->"
CALLS = Path(__file__).with_name("clients_calls.py")
CAPITALS = (
    ("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Spain", "Madrid"), ("Egypt", "Cairo"),
    ("Norway", "Oslo"), ("Greece", "Athens"), ("Kenya", "Nairobi"), ("Cuba", "Havana"), ("Peru", "Lima"),
    ("Austria", "Vienna"), ("Poland", "Warsaw"), ("Ireland", "Dublin"), ("Portugal", "Lisbon"), ("Iran", "Tehran"),
    ("Chile", "Santiago"), ("Canada", "Ottawa"), ("Russia", "Moscow"), ("China", "Beijing"), ("India", "New Delhi"),
)  # fmt: skip


def measure(minute: bool) -> dict[str, Any]:
    python = os.environ.get("CLIENTS_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as scratch, _server() as url:
        told = _run([python, str(CALLS), url, DEFAULT_MODEL], scratch)
        table = json.loads(told.splitlines()[-1])
        if not table["routes"]:
            raise MissingExtra("langchain-openai, llama-index, llm or lm-eval", "dev")
        harness = _harness(python, url, Path(scratch), 6 if minute else len(CAPITALS))
    cells = [answer for row in table["routes"].values() for answer in row.values()]
    if not minute:
        _write(table)
    return {
        "model": DEFAULT_MODEL,
        "versions_of_clients": table["versions"],
        "routes": table["routes"],
        "harness": harness,
        "bars": {
            "every call of every client succeeds": all(answer == "ok" for answer in cells),
            "lm-eval over HTTP gives the accuracy of this process": harness["accuracy"] == harness["accuracy_here"],
            "its log-likelihoods differ by less than 1e-3": harness["largest_difference"] < 1e-3,
        },
    }


@contextlib.contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, "-m", "ladderlm", "serve", DEFAULT_MODEL, "--port", "0", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            text += child.stdout.readline()
        yield json.loads(text)["url"]
    finally:
        child.terminate()
        child.wait(30)


def _run(command: list[str], scratch: str) -> str:
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": scratch,
             "LLM_USER_PATH": scratch, "TOKENIZERS_PARALLELISM": "false", "OPENAI_API_KEY": "none",
             "ANONYMIZED_TELEMETRY": "false"}  # fmt: skip
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, cwd=scratch, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


# --- lm-evaluation-harness ----------------------------------------------------------------------------------------


def _harness(python: str, url: str, scratch: Path, items: int) -> dict[str, Any]:
    """What lm-eval measures over HTTP, and what the engine gives for the same items."""
    cities = [city for _, city in CAPITALS]
    rows = [
        {"question": f"The capital of {land} is", "choices": [cities[(i + k) % len(cities)] for k in (0, 3, 7, 11)]}
        for i, (land, _) in enumerate(CAPITALS[:items])
    ]
    (scratch / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (scratch / "capitals.yaml").write_text(
        "task: capitals\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs:\n  data_files:\n    test: {scratch / 'capitals.jsonl'}\n"
        "doc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: 0\n"
        "metric_list:\n  - metric: acc\n"
    )
    arguments = f"model={DEFAULT_MODEL},base_url={url}/v1/completions,tokenizer_backend=remote"
    _run(
        [python, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments, "--tasks",
         "capitals", "--include_path", str(scratch), "--output_path", str(scratch / "out"), "--log_samples"],
        str(scratch),
    )  # fmt: skip
    samples = next((scratch / "out").rglob("samples_*.jsonl")).read_text().splitlines()
    results = json.loads(next((scratch / "out").rglob("results_*.json")).read_text())["results"]["capitals"]
    theirs = {}
    for line in samples:
        sample = json.loads(line)
        theirs[sample["doc"]["question"]] = [float(r[0]) for (r,) in _resps(sample)]
    ours = _here(rows)
    gaps = [abs(a - b) for question, row in ours.items() for a, b in zip(row, theirs[question], strict=True)]
    right = sum(max(range(len(row)), key=row.__getitem__) == 0 for row in ours.values())
    return {
        "items": items,
        "accuracy": results["acc,none"],
        "accuracy_here": right / items,
        "largest_difference": max(gaps),
    }


def _resps(sample: dict[str, Any]) -> Any:
    return sample["resps"]


def _here(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The log-likelihood of every choice, scored by the engine in this process."""
    files = open_model(DEFAULT_MODEL)
    encode, found = files.tokenizer.encode, {}
    with engine.load(files) as model:
        for row in rows:
            context = encode(row["question"])
            wholes = [encode(f"{row['question']} {choice}") for choice in row["choices"]]
            scores = model.score(context, [whole[len(context) :] for whole in wholes])
            found[row["question"]] = [sum(score) for score in scores]
    return found


# --- The table ----------------------------------------------------------------------------------------------------


def _write(table: dict[str, Any]) -> None:
    """Puts the table into the docs, between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{rendered(table)}\n{END}{after}", encoding="utf-8")


def rendered(table: dict[str, Any]) -> str:
    """The table in Markdown: a row for each client, a column for each route."""
    routes = list(dict.fromkeys(route for row in table["routes"].values() for route in row))
    lines = ["| client | " + " | ".join(routes) + " |", "|---" * (len(routes) + 1) + "|"]
    for client, row in table["routes"].items():
        cells = ["yes" if row.get(route) == "ok" else "no" if route in row else "" for route in routes]
        lines.append(f"| {client} {table['versions'].get(client, '')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
