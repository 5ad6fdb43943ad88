"""What going on from a model did to it: bits per byte of unseen texts before and after, of its new kind and of others.

Continued pretraining buys one kind of text with others (French 1999, doi:10.1016/S1364-6613(99)01294-2), and a share of
the old kind in the mixture buys most of it back (Ibrahim et al. 2024, arXiv:2403.08763): both sides are told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ladderlm.evals.helped import Helped, did_it_help
from ladderlm.evals.report import Report
from ladderlm.nn.decoder import Decoder
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.train.corpus import text_nats
from ladderlm.types import Record

NEW, GENERAL = "held out", "general"
_CALLED = {NEW: "Of unseen text of the data's kind", GENERAL: "Of general text"}


class BeforeAfter:
    """Sets of texts that a model is measured on as it comes, at once, and once more when it has learnt."""

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, start_id: int, sets: Mapping[str, Sequence[Record]]
    ) -> None:
        self._tokenizer, self._start = tokenizer, start_id
        self._sets = {name: records for name, records in sets.items() if records}
        self._before = self._bits(model)

    def _bits(self, model: Decoder) -> dict[str, list[float]]:
        """Of each set, the bits that each text costs."""
        found = {}
        for name, records in self._sets.items():
            ids = self._tokenizer.encode_batch([r["text"] for r in records])
            found[name] = [n / math.log(2) for n in text_nats(model, ids, self._start)]
        return found

    def compare(self, model: Decoder, seed: int = 0) -> dict[str, Helped]:
        """Bits per byte of each set, before and after, text by text."""
        after = self._bits(model)
        return {
            name: did_it_help(
                "bits per byte", self._before[name], after[name], higher_is_better=False, seed=seed,
                per=[len(r["text"].encode("utf-8", "surrogatepass")) for r in records],
            )
            for name, records in self._sets.items()
        }  # fmt: skip


def said(found: Mapping[str, Helped]) -> str:
    """A sentence for each set."""
    return " ".join(f"{_CALLED[name]}, {helped.change}." for name, helped in found.items())


def changes(report: Report, found: Mapping[str, Helped]) -> None:
    """The section of a report that shows them."""
    rows = [
        (name, *(f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (h.before, h.after)),
         f"{h.difference.mean:+.3f} [{h.difference.low:+.3f}, {h.difference.high:+.3f}]",
         f"{h.difference.mean / h.before.mean:+.1%}", h.items)
        for name, h in found.items()
    ]  # fmt: skip
    text = "Bits per byte of unseen texts, with 95 % intervals over texts; the change is paired."
    if GENERAL in found:
        text += " What it costs more of general text, it has forgotten."
    report.section("Before and after", text)
    report.table(("texts", "before", "after", "change", "relative", "pieces"), rows)


def stages(report: Report, data: Sequence[Mapping[str, Any]]) -> None:
    """The section of a report that tells how the data was made, where its lineage does."""
    seen: dict[tuple[str, str], tuple[Any, ...]] = {}

    def follow(entries: Sequence[Mapping[str, Any]]) -> None:
        for entry in entries:
            follow(entry.get("lineage") or ())
            left = ", ".join(f"{rule} {n:,}" for rule, n in entry.get("dropped", {}).items())
            names = ", ".join(i["name"] for i in entry.get("inputs", ()))
            stage = entry.get("stage", "")
            seen[stage, entry.get("output") or str(len(seen))] = (
                stage, names, entry.get("records_in", 0), entry.get("records_out", 0), left
            )  # fmt: skip

    follow([stage for entry in data for stage in entry.get("stages", ())])
    if seen:
        report.section("Data").table(("stage", "of", "records in", "out", "left out"), list(seen.values()))
