"""`ladderlm quickstart`: climbs in front of the user and shows each finding as it comes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ladderlm.apps.quickstart import QuickstartConfig, run
from ladderlm.cli import show
from ladderlm.cli.args import parse

BAR = 24


def main(argv: list[str]) -> int:
    config = parse(
        "quickstart",
        QuickstartConfig,
        argv,
        description="Climb the ladder: prompt, fine-tune, build. Resumable; ends with a one-page report.",
    )
    # Waiting threads sleep: spinning ones starve the page that is served meanwhile. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with show.progress():
        run(config, tell)
    return 0


def tell(stage: str, found: Mapping[str, Any]) -> None:
    """Prints a stage's findings."""
    if stage == "prompt":
        _prompt(found)
    elif stage == "after":
        print("\nFine-tune: " + found["verdict"])
        rows = [(name, f"{100 * s['mean']:.1f} %", f"[{100 * s['low']:.1f}, {100 * s['high']:.1f}]")
                for name, s in found["scores"].items()]  # fmt: skip
        show.table(rows, ("", "accuracy", "95 % interval"))
    elif stage == "bits":
        print("\nBuild: bits per byte of held-out text")
        show.table([(n, f"{found[n]:.3f}") for n in ("model", "trigram", "xz")], ("", "bits per byte"))
    elif stage == "compared":
        columns = ("prompt", "base", "tuned", "aligned")
        show.table([[" ".join(row[c].split())[:300] for c in columns] for row in found["rows"]], columns)
        for name, row in found["ended"].items():
            print(f"The {name} model ended its turn by itself on {row['ended']} of {row['of']} unseen prompts.")
    elif stage == "report":
        print(f"\nThe report: {found['page']}")


def _prompt(found: Mapping[str, Any]) -> None:
    print("\nPrompt: what comes next?")
    for kind, title in (("tokens", "token"), ("words", "whole word")):
        cells = []
        for table in found["tables"].values():
            most = max((row["probability"] for row in table[kind]), default=1) or 1
            cells.append([
                f"{row['text']!r:<16}{100 * row['probability']:6.2f} % " + "█" * round(BAR * row["probability"] / most)
                for row in table[kind]
            ])  # fmt: skip
        show.table(list(zip(*cells, strict=True)), [f"{p} ... ({title})" for p in found["tables"]])
    print("\nZero-shot classification by label likelihood:")
    rows = [(r["text"], r["answer"], f"{100 * r['probability']:.0f} %", "✓" if r["answer"] == r["label"] else "✗")
            for r in found["reviews"]]  # fmt: skip
    show.table(rows, ("review", "answer", "probability", ""))
    print(f"{found['right']} of {found['of']} right.")
