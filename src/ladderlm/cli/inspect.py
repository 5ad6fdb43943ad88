"""`ladderlm inspect MODEL PROMPT`: attention, the logit lens, ablations, neighbours, loss by position."""

from __future__ import annotations

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.cli.talking import visible
from ladderlm.evals import heads as figures
from ladderlm.evals.inspect import Ablation, Attention, InspectConfig, Inspection, Lens, run, strongest
from ladderlm.evals.position import PositionLoss


def main(argv: list[str]) -> int:
    config = parse("inspect", InspectConfig, argv, description="See inside a model: what it looks at, and why.")
    with show.progress():
        found = run(config)
    if config.json:
        show.emit_json(found.to_dict())
        return 0
    _show(found)
    return 0


def _show(found: Inspection) -> None:
    if found.next and found.ablation is None:
        show.table([(visible(n.text), f"{n.before:.2%}") for n in found.next], ("next token", "probability"))
    if found.lens is not None:
        _show_lens(found.lens)
    if found.attention is not None:
        _show_attention(found.tokens, found.attention)
    if found.ablation is not None:
        _show_ablation(found.ablation)
    if found.sweep:
        effects = [(e.part, f"{e.last:.4f}", f"{e.mean:.4f}") for e in strongest(found.sweep)]
        show.table(effects, ("without", "KL after the last token", "mean KL"), "What matters most here, in nats")
    for near in found.neighbours:
        rows = [(visible(t), f"{c:.3f}") for t, c in near.similar]
        show.table(rows, (f"near {visible(near.token)}", "cosine"))
    if found.loss is not None:
        _show_loss(found.loss)


def _show_lens(lens: Lens) -> None:
    """The last position, layer by layer: the rest is in the page."""
    rows = []
    for number, top in enumerate(lens.top):
        name = "embedding" if number == 0 else f"layer {number - 1}"
        final = f"{lens.final_probability[number][-1]:.2%}"
        rows.append((name, visible(top[-1]), f"{lens.probability[number][-1]:.2%}", final, lens.final_rank[number][-1]))
    final = visible(lens.final[-1])
    show.table(rows, ("after", "would say", "probability", f"of {final}", "rank"), "Logit lens, after the last token")


def _show_attention(tokens: tuple[str, ...], attention: Attention) -> None:
    if len(attention.figures) > 1:
        striking = [(kind, head, f"{share:.1%}") for kind, head, share in figures.striking(attention.figures)]
        show.table(striking, ("does most of", "head", "share"), "Heads")
        return
    head = attention.figures[0]
    rows = []
    for i, row in enumerate(attention.shares[0][0]):
        most = sorted(range(i + 1), key=lambda j: -row[j])[:3]
        rows.append((visible(tokens[i]), "  ".join(f"{visible(tokens[j])} {row[j]:.0%}" for j in most)))
    show.table(rows, ("token", "takes most from"), f"Layer {head.layer}, head {head.head}: {head.said}")


def _show_ablation(ablation: Ablation) -> None:
    rows = [(visible(n.text), f"{n.before:.2%}", f"{n.after:.2%}") for n in ablation.next]
    show.table(rows, ("next token", "before", "after"), f"Without {', '.join(ablation.parts)}")
    print(f"KL divergence {ablation.kl_last:.4f} nats after the last token, {ablation.kl_mean:.4f} on average")
    if ablation.loss_before is not None:
        print(f"loss of the prompt {ablation.loss_before:.4f} -> {ablation.loss_after:.4f} nats a token")


def _show_loss(loss: PositionLoss) -> None:
    rows = [(b.first, b.last, b.tokens, f"{b.loss.mean:.3f}", f"{b.loss.low:.3f}", f"{b.loss.high:.3f}") for b in
            loss.buckets]  # fmt: skip
    show.table(rows, ("from", "to", "tokens", "nats", "low", "high"), "Loss by tokens before, 95 % intervals")
    if loss.gain is not None:
        print(f"the second half of a window costs {loss.gain} nats a token less than its first half")
