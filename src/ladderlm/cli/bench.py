"""`ladderlm bench MODEL [--against PEER]`: how fast it runs here, what the machine could do, and what others do."""

from __future__ import annotations

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.cli.models import size
from ladderlm.evals.speed import BenchConfig, BenchResult, rows, run


def main(argv: list[str]) -> int:
    config = parse("bench", BenchConfig, argv, description="Speed and memory of a model here, and of other programs.")
    with show.progress():
        result = run(config)
    if config.json:
        show.emit_json(result.to_dict())
        return 0
    _print(result)
    return 0


def _print(result: BenchResult) -> None:
    peers = [column for peer in result.systems[1:] for column in (peer.name, "times faster")]
    title = (
        f"{result.model}: {result.parameters / 1e6:,.0f} M weights, {result.threads} threads, {result.rounds} rounds"
    )
    show.table(rows(result), ("work", "ladderlm", "of the machine's most", *peers), title)
    read, operations, integers = (result.ceiling[f"{name}_per_second"] for name in (
        "read_bytes", "operations", "integer_operations"))  # fmt: skip
    new = result.fresh
    told = [
        ("runs on", result.instructions),
        ("memory read", f"{read / 1e9:.1f} GB/s"),
        ("arithmetic peak in floats", f"{operations / 1e9:,.0f} GOP/s"),
        *((("arithmetic peak in 8 bits", f"{integers / 1e9:,.0f} GOP/s"),) if integers else ()),
        ("weights in the file, read for a token", size(result.weight_bytes)),
        ("loading, in a new process", f"{new.load_seconds:.2f} s"),
        ("from its start to the first token", f"{new.wall_seconds:.2f} s"),
        *((name, size(value)) for name, value in (
            ("its most memory", new.peak_bytes), ("of it anonymous", new.anonymous_bytes)) if value is not None),
    ]  # fmt: skip
    for peer in result.systems[1:]:
        told += [(peer.name, f"{name.replace('_', ' ')}: {value}") for name, value in peer.about.items()]
    told += [(f"left out: {name}", why) for name, why in result.left_out.items()]
    show.table(told, ("what", "found"))
