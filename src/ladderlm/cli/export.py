"""`ladderlm verify A B` and `ladderlm export MODEL --to FORM DEST`."""

from __future__ import annotations

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.cli.models import size
from ladderlm.convert.compare.verdict import Verdict
from ladderlm.convert.verify import VerifyConfig
from ladderlm.convert.verify import run as run_verify


def verify(argv: list[str]) -> int:
    config = parse("verify", VerifyConfig, argv, description="Are two forms of a model the same model?")
    with show.progress():
        verdict = run_verify(config)
    if config.json:
        show.emit_json(verdict.to_dict())
    else:
        _print(verdict)
    return 0 if verdict.same else 1


def _print(verdict: Verdict) -> None:
    print(f"A: {verdict.a}\nB: {verdict.b}")
    rows = [(c.name, c.status, c.words + (f". Cure: {c.cure}" if c.cure else "")) for c in verdict.checks]
    show.table(rows, ("check", "status", "what was found"))
    if verdict.same:
        print("the same model")
    else:
        failed = [c.name for c in verdict.checks if c.status == "failed"]
        print(f"NOT the same model: {', '.join(failed)}" if failed else "nothing could be compared")


def export(argv: list[str]) -> int:
    from ladderlm.convert.export import ExportConfig, run

    config = parse("export", ExportConfig, argv, description="Write a model in another form, and verify the result.")
    with show.progress():
        result = run(config)
    if config.json:
        show.emit_json(result.to_dict())
        return 0
    if found := result.cost:
        rows = [
            ("bytes", size(found.bytes_before), size(found.bytes_after)),
            ("perplexity", f"{found.perplexity_before:.3f}", f"{found.perplexity_after:.3f}"),
            ("greedy tokens/s", f"{found.tokens_per_second_before:.0f}", f"{found.tokens_per_second_after:.0f}"),
        ]
        show.table(rows, ("what", "before", "after"))
        low, high = 100 * found.increase.low, 100 * found.increase.high
        print(f"perplexity {100 * found.increase.mean:+.2f} % [{low:+.2f}, {high:+.2f}] on {found.tokens:,} tokens")
    print(result.path)
    return 0
