"""`inspect`: seeing inside a model. Attention maps, the logit lens, ablations, neighbours, loss by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ladderlm import events
from ladderlm.config import option
from ladderlm.data.shapes import conversation
from ladderlm.data.tables import read_table
from ladderlm.errors import MissingExtra, UsageError
from ladderlm.evals import heads as figures
from ladderlm.evals import pictures
from ladderlm.evals.heads import Head
from ladderlm.evals.position import PositionLoss, loss_by_position
from ladderlm.evals.report import Report
from ladderlm.types import Conversation, Message, Value

if TYPE_CHECKING:
    from ladderlm.evals.inside import Effect, Part, Trace
    from ladderlm.models.folder import ModelFiles
    from ladderlm.nn import Decoder
    from ladderlm.types import FloatArray

_LONGEST = 256  # tokens of a prompt: beyond, nobody can read the pictures


@dataclass(frozen=True, slots=True)
class InspectConfig:
    model: str = option(help="a model: name, folder, file.gguf, base+adapter")
    prompt: str | None = option(None, "the text to look at", positional=True)
    attention: bool = option(False, "what each head looks at (with no view named: attention and lens)")
    layer: int = option(-1, "attention: only this layer, counted from 0")
    head: int = option(-1, "attention: only this head, and a large picture of it")
    lens: bool = option(False, "what each layer would say: its residual stream read as if it were the last")
    ablate: tuple[str, ...] = option((), "take parts away and see what changes: layer:3, head:3.5; may be repeated")
    mean: bool = option(False, "what is taken away becomes its mean over the text, not zero")
    sweep: bool = option(False, "take every head and layer away in turn, and rank them by effect")
    neighbours: bool = option(False, "the tokens whose embeddings are nearest to those of the prompt")
    loss: str = option("", "a text or .jsonl file: the loss by position, whether context helps")
    context: int = option(0, "loss: tokens per window (0: the model's context)")
    limit: int = option(0, "loss: use only the first N texts (0: all)")
    chat: bool = option(False, "the prompt is a user's message: put it into the model's template")
    k: int = option(10, "how many next tokens and neighbours to list", short="-k")
    out: str = option("", "a folder to write report.html, report.md and the pictures to")
    seed: int = option(0, "for intervals")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class Next(Value):
    """A next token and its probability; `after` that without the ablated parts."""

    id: int
    text: str
    before: float
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Attention(Value):
    """Figures of each head, and `shares[layer][head][i][j]`: how much token i takes from token j."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    figures: tuple[Head, ...]
    shares: tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]


@dataclass(frozen=True, slots=True)
class Lens(Value):
    """For the embedding and each layer, at each position: the likeliest token, its probability, and the probability
    and rank of what the model says in the end (`final`)."""

    final: tuple[str, ...]
    top: tuple[tuple[str, ...], ...]
    probability: tuple[tuple[float, ...], ...]
    final_probability: tuple[tuple[float, ...], ...]
    final_rank: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Ablation(Value):
    """Without `parts`: the next-token table before and after, KL(before || after) in nats after the last token and
    on average over the positions, and the loss of the prompt itself, nats a token (None for a single token)."""

    parts: tuple[str, ...]
    mean: bool
    next: tuple[Next, ...]
    kl_last: float
    kl_mean: float
    loss_before: float | None
    loss_after: float | None


@dataclass(frozen=True, slots=True)
class Neighbours(Value):
    token: str
    similar: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Inspection(Value):
    """What was looked at; views that were not asked for are None or empty."""

    model: str
    prompt: str
    tokens: tuple[str, ...] = ()
    next: tuple[Next, ...] = ()
    attention: Attention | None = None
    lens: Lens | None = None
    ablation: Ablation | None = None
    sweep: tuple[Effect, ...] = ()
    neighbours: tuple[Neighbours, ...] = ()
    loss: PositionLoss | None = None


def run(config: InspectConfig) -> Inspection:
    """Looks into `config.model`; with `out` also writes the page.

    Raises UsageError for a part the model lacks or a prompt that is too long, MissingExtra without torch (only the
    loss by position does without it).
    """
    from ladderlm.models import open_model

    if config.k < 1:
        raise UsageError("must be at least 1", where=f"-k {config.k}")
    if config.prompt is None and not config.loss:
        raise UsageError("no prompt", cure='such as: ladderlm inspect MODEL "The capital of France is"')
    files = open_model(config.model)
    views = _look(config, files) if config.prompt is not None else {}
    loss = _loss(config, files) if config.loss else None
    found = Inspection(files.name, config.prompt or "", **views, loss=loss)
    if config.out:
        page = make_report(found).write(config.out)
        events.emit("inspect", f"the page: {page}")
    return found


def _look(config: InspectConfig, files: ModelFiles) -> dict[str, Any]:
    """The views of the prompt."""
    try:
        from ladderlm.evals import inside
        from ladderlm.nn import load_decoder
    except ImportError:
        raise MissingExtra("torch", "train") from None

    place = inside.Part(max(config.layer, 0), max(config.head, 0))
    if files.arch.kind != "decoder":
        return _look_both_ways(config, files, place)
    ids = prompt_ids(files, config.prompt or "", config.chat)
    parts = [inside.Part.parse(text) for text in config.ablate]
    decoder = load_decoder(files)
    inside.check(files.arch, [*parts, place])
    text = files.tokenizer.token_text
    seen = inside.trace(decoder, ids)
    shares_V = seen.logits_TV[-1].softmax(-1)
    best = shares_V.topk(min(config.k, len(shares_V)))
    views: dict[str, Any] = {
        "tokens": tuple(map(text, ids)),
        "next": tuple(Next(i, text(i), p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)),
    }
    chosen = config.attention or config.layer >= 0 or config.head >= 0
    nothing = not (chosen or config.lens or parts or config.sweep or config.neighbours or config.loss)
    if chosen or nothing:
        views["attention"] = _attention(seen.shares_LHTT, ids, config.layer, config.head)
    if config.lens or nothing:
        views["lens"] = _lens(decoder, seen, files)
    if parts:
        views["ablation"] = _ablation(decoder, seen, files, parts, config)
    if config.sweep:
        views["sweep"] = tuple(inside.sweep(decoder, ids, seen.logits_TV, config.mean))
    if config.neighbours:
        once = list(dict.fromkeys(ids))
        near = inside.neighbours(decoder, once, config.k)
        views["neighbours"] = tuple(
            Neighbours(text(i), tuple((text(j), cosine) for j, cosine in row))
            for i, row in zip(once, near, strict=True)
        )
    return views


def _look_both_ways(config: InspectConfig, files: ModelFiles, place: Part) -> dict[str, Any]:
    """An encoder's attention: it predicts no next token, so there is nothing else to see."""
    from ladderlm.evals import inside
    from ladderlm.nn import load_encoder

    if config.lens or config.ablate or config.sweep or config.neighbours or config.chat:
        raise UsageError("an encoder shows its attention only", where=files.name, cure="leave out the other views")
    inside.check(files.arch, [place])
    ids, _ = files.tokenizer.encode_pair(config.prompt or "", max_length=min(_LONGEST, files.arch.context_length))
    attention = _attention(inside.shares(load_encoder(files), ids), ids, config.layer, config.head)
    return {"tokens": tuple(map(files.tokenizer.token_text, ids)), "attention": attention}


def prompt_ids(files: ModelFiles, prompt: str, chat: bool) -> list[int]:
    """The ids a model reads for raw text or, if `chat`, for a user's message. UsageError for none or too many."""
    from ladderlm.text.render import render

    tokenizer = files.tokenizer
    if chat and files.template is None:
        raise UsageError("this model has no chat template", where=files.name, cure="leave out --chat")
    if chat and files.template is not None:
        ids = list(render(Conversation((Message.of("user", prompt),)), tokenizer, files.template).ids)
    else:
        start = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        ids = [*start, *tokenizer.encode(prompt)]
    if not ids:
        raise UsageError("the prompt is empty", cure="give it a word or two")
    longest = min(_LONGEST, files.arch.context_length)
    if len(ids) > longest:
        raise UsageError(f"a prompt of {len(ids)} tokens", where=f"at most {longest}", cure="look at a shorter one")
    return ids


def _attention(shares: FloatArray, ids: Sequence[int], layer: int, head: int) -> Attention:
    layers = (layer,) if layer >= 0 else tuple(range(shares.shape[0]))
    heads = (head,) if head >= 0 else tuple(range(shares.shape[1]))
    kept = np.round(shares[np.ix_(layers, heads)].astype(np.float64), 5)
    nested = tuple(tuple(tuple(tuple(row) for row in map_.tolist()) for map_ in some) for some in kept)
    described = tuple(figures.describe(shares[i, j], ids, i, j) for i in layers for j in heads)
    return Attention(layers, heads, described, nested)


def _lens(decoder: Decoder, seen: Trace, files: ModelFiles) -> Lens:
    from ladderlm.evals import inside

    found, text = inside.lens(decoder, seen), files.tokenizer.token_text

    def nested(values: np.ndarray) -> Any:
        return tuple(map(tuple, values.tolist()))

    return Lens(
        tuple(map(text, found.final_T.tolist())), tuple(tuple(map(text, row)) for row in found.top.tolist()),
        nested(found.probability), nested(found.final_probability), nested(found.final_rank),
    )  # fmt: skip


def _ablation(
    decoder: Decoder, seen: Trace, files: ModelFiles, parts: Sequence[Any], config: InspectConfig
) -> Ablation:
    import torch

    from ladderlm.evals import inside

    before_TV, after_TV = seen.logits_TV, inside.ablated(decoder, seen.ids, [parts], config.mean)[0]
    was_V, is_V = before_TV[-1].softmax(-1), after_TV[-1].softmax(-1)
    k = min(config.k, len(was_V))
    listed = dict.fromkeys([*was_V.topk(k).indices.tolist(), *is_V.topk(k).indices.tolist()])
    rows = [Next(i, files.tokenizer.token_text(i), float(was_V[i]), float(is_V[i])) for i in listed]
    moved_T = inside.divergence(before_TV, after_TV)
    losses: list[float | None] = [None, None]
    if len(seen.ids) > 1:
        wanted = torch.tensor(seen.ids[1:])
        losses = [float(torch.nn.functional.cross_entropy(t[:-1], wanted)) for t in (before_TV, after_TV)]
    return Ablation(
        tuple(map(str, parts)), config.mean, tuple(sorted(rows, key=lambda r: -r.before)), float(moved_T[-1]),
        float(moved_T.mean()), *losses,
    )  # fmt: skip


def _loss(config: InspectConfig, files: ModelFiles) -> PositionLoss:
    from ladderlm import engine as engines

    texts = []
    for record in read_table(config.loss).settled(skip_bad=False):
        whole = record["text"] if record.kind in ("text", "class") else None
        texts.append(whole if whole is not None else "\n".join(m.text for m in conversation(record).messages))
    engine = engines.load(files)
    try:
        chosen = texts[: config.limit or None]
        return loss_by_position(engine, files.tokenizer, chosen, config.context or None, config.seed)
    finally:
        engine.close()


# --- The page -----------------------------------------------------------------------------------------------------


def make_report(found: Inspection) -> Report:
    """One page with the pictures."""
    shown = "".join(map(pictures.visible, found.tokens[:40])) + ("…" if len(found.tokens) > 40 else "")
    report = Report(f"Inside {found.model}", f"{len(found.tokens)} tokens: `{shown}`" if found.tokens else "")
    if found.next:
        rows = [(pictures.visible(n.text), n.before) for n in found.next]
        report.section("What comes next").table(("token", "probability"), rows)
    if found.lens is not None:
        report.section(
            "The logit lens",
            "What each layer's residual stream says when it is read as if it were the last (nostalgebraist 2020). The "
            "stronger the colour, the likelier; framed where it already is what the model says in the end.",
        ).picture("logit lens", lens_picture(found))
    if found.attention is not None:
        _attention_section(report, found, found.attention)
    if found.ablation is not None:
        _ablation_section(report, found.ablation)
    if found.sweep:
        _sweep_section(report, found.sweep)
    if found.neighbours:
        nearest = [(pictures.visible(n.token), ", ".join(f"{pictures.visible(t)} {c:.2f}" for t, c in n.similar))
                   for n in found.neighbours]  # fmt: skip
        report.section("Neighbours", "Tokens whose embeddings point most nearly the same way, with the cosine.")
        report.table(("token", "nearest"), nearest)
    if found.loss is not None:
        _loss_section(report, found.loss)
    return report


def lens_picture(found: Inspection) -> str:
    assert found.lens is not None
    lens = found.lens
    return pictures.lens_grid(
        found.tokens, lens.top, np.array(lens.probability), np.array(lens.final_rank), lens.final
    )  # fmt: skip


def _attention_section(report: Report, found: Inspection, attention: Attention) -> None:
    shares = np.array(attention.shares, np.float32)
    by_place = {(f.layer, f.head): f for f in attention.figures}
    notes = [[by_place[layer, head].said for head in attention.heads] for layer in attention.layers]
    report.section(
        "Attention",
        "How much each token (a row) takes from those before it (columns). The first token often takes what nobody "
        "needs: it is the same for every text, so looking at it does nothing.",
    )
    if len(attention.figures) > 1:
        overview = pictures.attention_overview(shares, notes, attention.layers, attention.heads)
        report.picture("every head", overview, "Point at a map for its figures.")
        report.text(figures.MEANING).table(("does most of", "head", "share"), figures.striking(attention.figures))
    for figure in figures.worth_showing(attention.figures):
        row, col = attention.layers.index(figure.layer), attention.heads.index(figure.head)
        label = f"layer {figure.layer}, head {figure.head}"
        report.picture(label, pictures.attention_map(shares[row, col], found.tokens, label), f"{label}: {figure.said}")


def _ablation_section(report: Report, ablation: Ablation) -> None:
    how = "their mean over the text" if ablation.mean else "zero"
    said = f"What they add became {how}. The prediction moved by {ablation.kl_last:.3g} nats (KL divergence) after the "
    said += f"last token, {ablation.kl_mean:.3g} on average over all."
    if ablation.loss_before is not None and ablation.loss_after is not None:
        said += f" The prompt itself costs {ablation.loss_after:.3f} nats a token; before {ablation.loss_before:.3f}."
    report.section(f"Without {', '.join(ablation.parts)}", said)
    rows = [(pictures.visible(n.text), n.before, n.after) for n in ablation.next]
    report.table(("token", "before", "after"), rows)


def _sweep_section(report: Report, sweep: Sequence[Effect]) -> None:
    rows = max(e.layer for e in sweep) + 1
    last = {(e.layer, e.head): e.last for e in sweep}
    heads = np.array([[last[i, j] for j in range(sum(e.layer == 0 for e in sweep) - 1)] for i in range(rows)])
    layers = np.array([last[i, None] for i in range(rows)])
    report.section(
        "Which parts matter here",
        "How far the prediction after the last token moves (KL divergence, nats) when one head or one layer is taken "
        "away. Heads and layers are coloured each on a scale of their own.",
    ).picture("effects", pictures.effect_grid(heads, layers))
    report.table(
        ("part", "after the last token", "mean over all"), [(e.part, e.last, e.mean) for e in strongest(sweep)]
    )


def strongest(sweep: Sequence[Effect], count: int = 6) -> list[Effect]:
    """The layers and then the heads with the largest effect after the last token, `count` of each."""
    ordered = sorted(sweep, key=lambda e: -e.last)
    return [e for e in ordered if e.head is None][:count] + [e for e in ordered if e.head is not None][:count]


def _loss_section(report: Report, loss: PositionLoss) -> None:
    said = f"{loss.tokens:,} tokens in {loss.windows:,} windows of at most {loss.context:,}: "
    said += f"{loss.nats / loss.tokens:.3f} nats a token, perplexity {math.exp(min(loss.nats / loss.tokens, 700)):.3g}."
    if loss.gain is not None:
        said += f" The second half of a window costs {loss.gain} nats a token less than its first half."
    report.section("Loss by position", said).picture("loss by position", pictures.position_plot(loss))
    rows = [(b.first, b.last, b.tokens, b.loss.mean, b.loss.low, b.loss.high) for b in loss.buckets]
    report.table(("from", "to", "tokens", "nats", "low", "high"), rows, "95 % bootstrap intervals over windows.")
