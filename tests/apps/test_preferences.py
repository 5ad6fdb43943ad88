"""Pairs from ratings, judges, principles, known answers, strong against weak; and what pairs are worth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hosted_api import HostedApi

from ladderlm.apps.judge import Judge, alpha, kappa, read_principles
from ladderlm.apps.preferences import CheckConfig, MakeConfig, check, make
from ladderlm.cli import preferences as verb
from ladderlm.data.records import read_records
from ladderlm.errors import FormatError, UsageError


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def part(text: str, name: str) -> str:
    """The answer A or B in a judge's question."""
    return text.split(f"Answer {name}:\n")[1].split("\n\n")[0]


class Fake:
    """Answers in turn; as a judge it finds the answer with the higher number better, or always says A."""

    def __init__(self, biased: bool = False) -> None:
        self.count, self.biased, self.seen = 0, biased, list[str]()

    def __call__(self, model: str, messages: list[dict[str, str]]) -> str:
        text = messages[-1]["content"]
        if "Answer A:" not in text:
            self.count += 1
            return f"{model} {self.count % 4}"
        self.seen.append(text)
        if self.biased:
            return "A"
        return "A" if int(part(text, "A").split()[-1]) > int(part(text, "B").split()[-1]) else "B, I think"


def test_ratings_become_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "p", "answer": "good", "rating": 5},
        {"prompt": "p", "answer": "good", "rating": 4},
        {"prompt": "p", "answer": "bad", "rating": 1},
        {"prompt": "q", "answers": ["one", "two", "three"], "ratings": [2, 3, 1]},
        {"prompt": "r", "answer": "alone", "rating": 3},
        {"prompt": "s", "answers": ["a", "b"], "ratings": [2, 2]},
    ]
    out = tmp_path / "pairs.jsonl"
    assert verb.main(["make", write(tmp_path / "r.jsonl", rows), "-o", str(out)]) == 0
    assert "2 pairs from 4 prompts" in capsys.readouterr().out
    found = read_records(out)
    assert [(r["chosen"], r["rejected"]) for r in found] == [("good", "bad"), ("two", "three")]
    assert found[0].meta["ratings"] == [4.5, 1.0]
    with pytest.raises(FormatError, match="as many"):
        make(MakeConfig(write(tmp_path / "x.jsonl", [{"prompt": "p", "answers": ["a"], "ratings": [1, 2]}])))


def test_a_judge_ranks_the_samples(tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"text": "Say something."}, {"text": "And more."}])
    fake = Fake()
    with HostedApi(fake) as api:
        found = make(MakeConfig(prompts, str(tmp_path / "o.jsonl"), f"{api.url}#m", n=4, judge=f"{api.url}#judge"))
    assert (found.pairs, found.consistent) == (2, 1.0)
    for record in read_records(tmp_path / "o.jsonl"):
        assert (record["chosen"], record["rejected"]) == ("m 3", "m 0")
    assert all("principle" not in text for text in fake.seen)


def test_a_judge_that_looks_at_the_place_alone_decides_nothing(tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"text": "Say something."}])
    with HostedApi(Fake(biased=True)) as api:
        found = Judge(f"{api.url}#judge").compare("p", "x 1", "x 2")
        assert (found.winner, found.consistent, found.lean) == (None, False, 1.0)
        with pytest.raises(FormatError, match="1 whose answers the judge holds equal"):
            make(MakeConfig(prompts, str(tmp_path / "o.jsonl"), f"{api.url}#m", judge=f"{api.url}#j"))
    assert not (tmp_path / "o.jsonl").exists()


def test_principles_take_turns(tmp_path: Path) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text("# ours\n- Be kind.\n\nBe brief.\n")
    assert read_principles(str(rules)) == ["Be kind.", "Be brief."]
    fake = Fake()
    prompts = write(tmp_path / "p.jsonl", [{"text": "Say something."}])
    with HostedApi(fake) as api:
        make(MakeConfig(prompts, str(tmp_path / "o.jsonl"), f"{api.url}#m", n=3, judge=f"{api.url}#j",
                        principles=str(rules)))  # fmt: skip
    assert {t.split("principle: ")[1].split("\n")[0] for t in fake.seen} == {"Be kind.", "Be brief."}
    with pytest.raises(UsageError, match="somebody who judges"):
        make(MakeConfig(prompts, model="m", principles=str(rules)))


def test_strong_against_weak_and_known_answers(tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "2?", "completion": "m 2"}])
    out = str(tmp_path / "o.jsonl")
    with HostedApi(Fake()) as api:
        make(MakeConfig(prompts, out, strong=f"{api.url}#big", weak=f"{api.url}#little"))
        record = read_records(out)[0]
        assert (record["chosen"].split()[0], record["rejected"].split()[0]) == ("big", "little")
        make(MakeConfig(prompts, out, f"{api.url}#m", n=4))
        assert read_records(out)[0]["chosen"] == "m 2"
    with pytest.raises(UsageError, match="one source"):
        make(MakeConfig(prompts, strong="a"))


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_what_is_wrong_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [pair(f"q{i}", f"a long answer with many words {i}", "short 9") for i in range(30)]
    rows += [pair("x", "a 1", "b 2"), pair("x", "b 2", "a 1"), pair("y", "c 3", "c 3"), pair("z", "d 4", "e 5")]
    rows += [pair("z", "d 4", "e 5")]
    data = write(tmp_path / "p.jsonl", rows)
    with HostedApi(Fake()) as api:
        found = check(CheckConfig(data, judge=f"{api.url}#judge", report=str(tmp_path / "page")))
    assert (found.pairs, found.same, found.contradicting, found.repeated) == (35, 1, 1, 1)
    assert found.longer.mean == 1.0
    assert found.agreement == 0.5
    assert found.judge_agrees is not None
    assert found.judge_agrees.mean > 0.5
    assert any("length alone" in text for text in found.warnings)
    assert "length alone" in (tmp_path / "page" / "report.md").read_text()
    assert verb.main(["check", data]) == 0
    assert "chosen both ways" in capsys.readouterr().out


def test_agreement_beyond_chance_by_hand() -> None:
    assert kappa([(1, 1), (0, 0)]) == 1
    assert kappa([(1, 1), (1, 0), (0, 1), (0, 0)]) == 0
    assert alpha([(1, 1), (0, 0)]) == 1
    # Krippendorff (2011), "Computing Krippendorff's alpha-reliability", B: two observers, nominal data.
    assert alpha(list(zip("aabbdcccedda", "babbbccceddd", strict=True))) == pytest.approx(0.692, abs=0.001)
