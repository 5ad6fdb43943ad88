"""The one page at the end: what was tried, what came of it, with intervals and curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladderlm import store
from ladderlm.evals.intervals import Interval
from ladderlm.evals.report import Report
from ladderlm.types import Run

NAMES = {
    "majority": "always the commonest label",
    "tfidf": "word counts (tf-idf + logistic regression)",
    "zero_shot": "the model, zero-shot",
    "few_shot": "the model, few-shot",
    "tuned": "the tuned model",
    "rule": "a rule made for this task: do signature and sentence share a word stem?",
}


def write(run: Run, found: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, tuple[float, float]]) -> Path:
    """Writes report.md and report.html into the run folder from the ledger's results; returns the HTML's path."""
    report = Report("LadderLM quickstart", summary(found))
    if "prompt" in found:
        _prompt(report, found["prompt"])
    if "after" in found:
        _finetune(report, found)
    if "compared" in found:
        _build(report, found)
    report.section("Time")
    rows = [(stage, wall, cpu) for stage, (wall, cpu) in seconds.items()]
    report.table(("stage", "wall s", "CPU s"), [*rows, ("all", sum(r[1] for r in rows), sum(r[2] for r in rows))])
    return report.write(run.path)


def summary(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The findings in a few plain sentences, failures included."""
    lines = []
    if "prompt" in found:
        p = found["prompt"]
        lines.append(f"- **Prompt**: {p['right']} of {p['of']} reviews classified rightly without any training.")
    if "after" in found:
        result = found["after"]
        plain = (
            "It is above zero-shot, few-shot, the majority label and word counts, each with its paired interval."
            if result["above_all"]
            else "It is NOT above all of zero-shot, few-shot, the majority label and word counts: see the differences."
        )
        lines.append(f"- **Fine-tune**: {result['verdict']} {plain}")
    if "compared" in found:
        b = found["bits"]
        better = [n for n in ("xz", "trigram") if b["model"] < b[n]]
        worse = [n for n in ("xz", "trigram") if b["model"] >= b[n]]
        text = f"{b['model']:.3f} bits per byte on held-out text"
        text += f", better than {' and '.join(better)}" if better else ""
        text += f", NOT better than {' and '.join(worse)}" if worse else ""
        ended = found["compared"]["ended"]["tuned"]
        lines.append(
            f"- **Build**: {text}; the tuned model ended its turn on {ended['ended']} of {ended['of']} prompts."
        )
    return "\n".join(lines)


def _prompt(report: Report, found: Mapping[str, Any]) -> None:
    report.section("Prompt", "What comes next? The same words after a negation: context changes the distribution.")
    tables = found["tables"]
    for kind in ("tokens", "words"):
        columns = [[f"{row['text']!r} {100 * row['probability']:.2f} %" for row in t[kind]] for t in tables.values()]
        report.table(tuple(tables), list(zip(*columns, strict=True)))
    rows = [(r["text"], r["answer"], f"{100 * r['probability']:.0f} %", r["label"]) for r in found["reviews"]]
    report.table(("review", "answer", "probability", "truth"), rows, "Zero-shot, by the likelihood of each label.")


def _finetune(report: Report, found: Mapping[str, Mapping[str, Any]]) -> None:
    before, tuned, result = found["before"], found["tuned"], found["after"]
    report.section("Fine-tune", f"{result['verdict']}")
    rows = []
    for name, label in ((n, label) for n, label in NAMES.items() if n in result["scores"]):
        score = Interval.from_dict(result["scores"][name]).percent()
        difference = result["differences"].get(name)
        rows.append((label, score, Interval.from_dict(difference).percent() if difference else ""))
    report.table(("", "accuracy", "tuned minus this, paired"), rows, f"{len(before['majority'])} held-out records.")
    forgot = result["forgetting"]
    change = Interval.from_dict(forgot["difference"]).percent()
    report.text(f"Forgetting probe ({forgot['items']} general facts): change {change}: {forgot['verdict']}.")
    if before["examples"]:
        report.table(("prompt", "label"), [(e["prompt"], e["label"]) for e in before["examples"]], "Held-out records.")
    _losses(report, "Fine-tuning loss", {"training loss": Path(tuned["run"])})


def _build(report: Report, found: Mapping[str, Mapping[str, Any]]) -> None:
    corpus, bits, compared = found["corpus"], found["bits"], found["compared"]
    report.section("Build")
    report.text(
        f"{corpus['documents']:,} documents ({corpus['bytes'] / 1e6:.1f} MB) from {corpus['source']}, "
        f"licence {', '.join(corpus['licences'])}; {corpus['held_bytes'] / 1e3:.0f} kB held out."
    )
    interval = Interval.from_dict(bits["interval"])
    report.table(
        ("held-out text", "bits per byte"),
        [("the base model", f"{bits['model']:.3f} [{interval.low:.3f}, {interval.high:.3f}]"),
         ("a Kneser-Ney trigram on the same tokens", f"{bits['trigram']:.3f}"),
         ("xz -9 of that text alone", f"{bits['xz']:.3f}")],
    )  # fmt: skip
    stages = {"Pretraining loss": "pretrained", "Instruction-tuning loss": "instructed", "DPO loss": "aligned"}
    for title, stage in stages.items():
        _losses(report, title, {"training loss": Path(found[stage]["run"])})
    for name, row in compared["ended"].items():
        share = Interval.from_dict({k: row[k] for k in ("mean", "low", "high")}).percent()
        report.text(
            f"The {name} model ended its turn by itself on {row['ended']} of {row['of']} unseen prompts ({share})."
        )
    columns = ("prompt", "base", "tuned", "aligned")
    # Line breaks become spaces: a base model may write nothing but short lines, and this is one page.
    report.samples(columns, [tuple(" ".join(row[c].split()) for c in columns) for row in compared["rows"]])


def _losses(report: Report, title: str, runs: Mapping[str, Path]) -> None:
    lines = {}
    for name, path in runs.items():
        rows = store.read_jsonl(Run(path).metrics)
        points = [(float(r["step"]), float(r["loss"])) for r in rows if "loss" in r]
        if points:
            lines[name] = points
    if lines:
        report.curve(title, lines)
