"""Personal data found in a labelled sample, ours and presidio's pattern recognisers; exact spans, and MB a CPU-second.

Two samples. The shared one (presidio-research's templates and fake people) was seen while the rules were written. The
second was not: the same templates, filled anew by a seeded generator with numbers of twelve countries in the forms
their numbering plans write. Presidio is asked for each recogniser of a kind we know too, at every score it gives that
its own default keeps; of its findings of one kind that overlap, it keeps the best itself. PRESIDIO names a Python that
has presidio-analyzer, when it is not installed beside LadderLM; without it, only our figures are given.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ladderlm.data.pii import find
from ladderlm.errors import NotFound

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "pii"
# presidio's name -> ours
KINDS = {
    "CREDIT_CARD": "card", "EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "IP_ADDRESS": "ip", "PHONE_NUMBER": "phone",
    "US_SSN": "ssn", "DOMAIN_NAME": "url", "US_DRIVER_LICENSE": "driver_licence", "DATE_TIME": "date",
}  # fmt: skip
Span = tuple[str, int, int]
Row = tuple[str, set[Span]]

_PRESIDIO = """
import importlib.metadata, json, logging, os, sys, time
os.environ["TLDEXTRACT_CACHE"] = ""
logging.disable(logging.CRITICAL)
from presidio_analyzer import EntityRecognizer
import presidio_analyzer.predefined_recognizers as known
names = ("CreditCard", "Email", "Iban", "Ip", "Phone", "UsSsn", "Url", "UsLicense", "Date")
recognisers = [getattr(known, f"{name}Recognizer")() for name in names]
texts = json.load(sys.stdin)
[r.analyze(texts[0], r.supported_entities, None) for r in recognisers]
found, began = [], time.process_time()
for text in texts:
    got = [x for r in recognisers for x in r.analyze(text, r.supported_entities, None) if x.score > 0]
    found.append([[x.entity_type, x.start, x.end] for x in EntityRecognizer.remove_duplicates(got)])
print(json.dumps({"found": found, "cpu_seconds": time.process_time() - began,
                  "version": importlib.metadata.version("presidio-analyzer")}))
"""


def shared() -> list[Row]:
    rows = json.loads((DATA / "presidio-synth-v2-60pct.json").read_text(encoding="utf-8"))
    return [
        (r["full_text"], {(KINDS[s["entity_type"]], s["start_position"], s["end_position"])
                          for s in r["spans"] if s["entity_type"] in KINDS})
        for r in rows
    ]  # fmt: skip


# --- The sample that nobody saw -----------------------------------------------------------------------------------

_PHONES = (
    "+49 30 #######", "+49 (0)89 ####-###", "0171 #######", "+33 1 ## ## ## ##", "06 ## ## ## ##", "020 7### ####",
    "+44 20 7### ####", "(2##) 5##-####", "+1 (3##) 5##-####", "4##-5##-####", "+39 06 ### ####", "91 ### ## ##",
    "+31 20 ### ####", "03-####-####", "+81 3-####-####", "+86 138 #### ####", "(11) 9####-####", "+91 98### #####",
    "044 ### ## ##", "+61 4## ### ###", "08-### ### ##",
)  # fmt: skip
_CARDS = ("4###############", "51##############", "37#############", "6011############", "4### #### #### ####",
          "5500-####-####-####", "3530############", "2221############")  # fmt: skip
_BANKS = (("DE", "##################"), ("GB", "WEST##############"), ("FR", "##########ABCDEFGHIJK##"),
          ("NL", "ABNA##########"), ("ES", "####################"), ("NO", "###########"))  # fmt: skip


def _luhn_fixed(text: str) -> str:
    digits = [int(c) for c in text if c.isdigit()][:-1]
    total = sum(d if i % 2 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits)))
    return text[:-1] + str(-total % 10)


def _value(slot: str, rng: random.Random) -> tuple[str, str]:
    """(our kind or "", a value) for a template's slot."""

    def fill(form: str) -> str:
        return re.sub("#", lambda _: str(rng.randrange(10)), form)

    word = "".join(rng.choice("abdeiklmnorstu") for _ in range(rng.randint(4, 9)))
    if slot == "phone_number":
        return "phone", fill(rng.choice(_PHONES))
    if slot.startswith("credit_card"):
        return "card", _luhn_fixed(fill(rng.choice(_CARDS)))
    if slot == "iban":
        country, form = rng.choice(_BANKS)
        account = fill(form)
        rest = int("".join(str(int(c, 36)) for c in account + country + "00")) % 97
        plain = f"{country}{98 - rest:02d}{account}"
        return "iban", plain if rng.random() < 0.5 else " ".join(plain[i : i + 4] for i in range(0, len(plain), 4))
    if slot in ("email", "company_email"):
        return (
            "email",
            f"{word}.{word[::-1]}@{rng.choice(('mail', 'post', 'web'))}.{rng.choice(('com', 'de', 'co.uk'))}",
        )
    if slot in ("url", "domain_name"):
        return "url", f"https://www.{word}.{rng.choice(('com', 'org', 'se', 'co.jp'))}/"
    if slot == "ip_address":
        return "ip", ".".join(str(rng.randint(11, 223)) for _ in range(4))
    if slot == "ssn":
        return "ssn", f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}"
    return "", {"zipcode": fill("#####"), "building_number": fill("##"), "age": str(rng.randint(18, 90))}.get(
        slot, word.title()
    )


def fresh(seed: int = 5, each: int = 4) -> list[Row]:
    """Each template filled `each` times; slots of other kinds hold words or numbers that are nobody's."""
    rng, rows = random.Random(seed), []
    for template in (DATA / "presidio-templates.txt").read_text(encoding="utf-8", errors="replace").splitlines():
        for _ in range(each if re.search(r"\{\{\s*\w+\s*\}\}", template) and "date" not in template else 0):
            text, spans, last = "", set(), 0
            for slot in re.finditer(r"\{\{\s*(\w+)\s*\}\}", template):
                text += template[last : slot.start()].replace("\\n", "\n")
                kind, value = _value(slot[1].lower(), rng)
                if kind:
                    spans.add((kind, len(text), len(text) + len(value)))
                text, last = text + value, slot.end()
            rows.append((text + template[last:].replace("\\n", "\n"), spans))
    return rows


# --- Measuring ----------------------------------------------------------------------------------------------------


def ours(texts: list[str]) -> tuple[list[set[Span]], float]:
    kinds = (*KINDS.values(), "birth_date", "key", "credentials")
    find("warm", kinds)
    began = time.process_time()
    found = [find(text, kinds) for text in texts]
    seconds = time.process_time() - began
    return [{("date" if f.kind == "birth_date" else f.kind, f.start, f.end) for f in fs} for fs in found], seconds


def presidio(texts: list[str]) -> tuple[list[set[Span]], float, str] | None:
    python = os.environ.get("PRESIDIO", sys.executable)
    run = subprocess.run(
        [python, "-c", _PRESIDIO], input=json.dumps(texts), capture_output=True, text=True, check=False
    )
    if run.returncode:
        return None
    told = json.loads(run.stdout.splitlines()[-1])
    names = {**KINDS, "URL": "url"}
    found = [{(names[kind], start, end) for kind, start, end in row if kind in names} for row in told["found"]]
    return found, told["cpu_seconds"], told["version"]


def scores(rows: list[Row], found: list[set[Span]]) -> dict[str, Any]:
    """Exact spans: precision, recall and F1 of each kind, and of all together."""
    counts = {kind: Counter[str]() for kind in KINDS.values()}
    for (_, wanted), got in zip(rows, found, strict=True):
        for name, spans in (("right", got & wanted), ("wrong", got - wanted), ("missed", wanted - got)):
            for kind, _, _ in spans:
                if kind in counts:
                    counts[kind][name] += 1
    total: Counter[str] = sum(counts.values(), Counter())
    shown = {kind: c for kind, c in counts.items() if c["right"] + c["missed"]}
    return {kind: _f1(c) for kind, c in {**shown, "all": total}.items()}


def _f1(c: Counter[str]) -> dict[str, float]:
    right = c["right"]
    return {
        "precision": round(right / max(1, right + c["wrong"]), 3),
        "recall": round(right / max(1, right + c["missed"]), 3),
        "f1": round(2 * right / max(1, 2 * right + c["wrong"] + c["missed"]), 3),
        "of": right + c["missed"],
    }


def measure(minute: bool) -> dict[str, Any]:
    if not DATA.is_dir():
        raise NotFound("the labelled sample is not there", where=str(DATA), cure="see bench/pii.py")
    figures: dict[str, Any] = {"bars": {}}
    samples = {"shared": shared(), "fresh": fresh(each=1 if minute else 4)}
    for name, rows in samples.items():
        texts = [text for text, _ in rows]
        size = sum(len(text.encode()) for text in texts) / 1e6
        found, seconds = ours(texts)
        result = {"texts": len(texts), "ours": scores(rows, found), "ours_mb_per_cpu_second": round(size / seconds, 1)}
        if other := presidio(texts):
            result |= {"presidio": scores(rows, other[0]), "presidio_mb_per_cpu_second": round(size / other[1], 3)}
            figures["presidio_version"] = other[2]
            for kind, score in result["ours"].items():
                figures["bars"][f"{name}: F1 of {kind} at least presidio's"] = (
                    score["f1"] >= result["presidio"][kind]["f1"]
                )
        figures[name] = result
    prose = (DATA.parent / "corpus" / "wikitext-2.valid.txt").read_text(encoding="utf-8")
    pages = [prose[at : at + 4000] for at in range(0, len(prose), 4000)]
    figures["prose_mb_per_cpu_second"] = {"ours": round(len(prose.encode()) / 1e6 / ours(pages)[1], 1)}
    if other := presidio(few := pages[: 5 if minute else 40]):
        figures["prose_mb_per_cpu_second"]["presidio"] = round(len("".join(few).encode()) / 1e6 / other[1], 3)
    return figures
