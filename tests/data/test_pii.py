"""Personal data: each kind is found, what looks like it is not, stand-ins are consistent, spans move along."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladderlm.cli.main import main
from ladderlm.data.pii import KINDS, find
from ladderlm.data.pii_keys import entropy
from ladderlm.data.pii_numbers import luhn
from ladderlm.data.pii_stage import mask, pii_stage
from ladderlm.data.pseudonyms import Pseudonyms
from ladderlm.data.records import make_record, read_records
from ladderlm.data.stages import Dropped
from ladderlm.errors import NotFound, UsageError

FOUND = [
    ("email", "write to", "jörg.o'neil+x@mail.example-firm.co.uk", "today."),
    ("email", "(", "a_b@c.de", ")"),
    ("phone", "at", "+49 (0)30 1234-5678", "or later"),
    ("phone", "at", "+33 1 23 45 67 89", "."),
    ("phone", "at", "0044 20 7946 0958", "."),
    ("phone", "at", "(212) 555-0187 x12", "."),
    ("phone", "at", "212.555.0187", "."),
    ("phone", "at", "030 123 45 67", "."),
    ("phone", "call me on", "467 3395", "please"),
    ("card", "paid with", "4111 1111 1111 1111", "."),
    ("card", "amex", "378282246310005", "."),
    ("iban", "to", "DE89 3704 0044 0532 0130 00", "from"),
    ("iban", "to", "NO9386011117947", "."),
    ("ip", "from", "8.8.4.4", "."),
    ("ip", "from", "2a00:1450:4001:81b::200e", ","),
    ("ip", "from", "fe80::1ff:fe23:4567:890a", " "),
    ("ssn", "is", "536-22-1857", "."),
    ("ssn", "social security number", "536221857", "."),
    ("key", "id", "AKIAIOSFODNN7ABCDEFG", ""),
    ("key", "", "ghp_" + "aB3d" * 9, ""),
    ("key", "", "xoxb-123456789012-abcDEF123", ""),
    ("key", "", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", ""),
    ("key", "", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nowIB\n-----END RSA PRIVATE KEY-----", ""),
    ("key", "db_password = '", "k9$Lm2x!Qz7", "'"),
    ("key", 'API_KEY: "', "f3A9c0D1e77b42", '"'),
    ("credentials", "postgres://", "anna:s3cr3t", "@db.example.com/x"),
    ("birth_date", "She was born on", "3 May 1984", "in Oslo."),
    ("birth_date", "DOB:", "1984-05-03", ""),
    ("driver_licence", "My driver's license number is", "F162823540116", "."),
]
CLEAN = [
    "icon@2x.png and @user and a @ b.c",
    "git clone git@github.com:org/name.git",
    "It was built in 1977-1984 for 1,234,567 people (12.5 %), see pages 112-118.",
    "order number 4111111111111112 and 1234567890123456",  # no Luhn digit, no issuer
    "DE89 3704 0044 0532 0130 01 has a wrong remainder",
    "127.0.0.1, 0.0.0.0, 192.0.2.7, version 1.2.3.4 and 999.1.1.1",
    "std::vector a::b x[1::2] 12:30:45",
    "000-12-3456 and 666-12-3456 and 078-05-1120",
    "password = os.environ['PASSWORD'] and token: str and secret = get_secret(name)",
    "api_key = 'your-api-key-1234' and password: xxxxxxxx12",
    "Founded on 3 May 1984. 3600-1200=2400 and 50331648 bytes",
    "https://example.com/a:b/c@d",
]


@pytest.mark.parametrize(("kind", "before", "value", "after"), FOUND)
def test_found(kind, before, value, after):
    gap = "" if before.endswith(("'", '"', "/", "(")) else " "
    text = before + gap + value + ("" if after[:1] in "'\"@)" else " ") + after
    start = len(before + gap)
    assert (kind, start, start + len(value)) in find(text)


@pytest.mark.parametrize("text", CLEAN)
def test_not_found(text):
    assert find(text) == []


def test_web_addresses_and_dates_are_looked_for_on_request():
    text = "see https://example.com/a_(b). On 3 May 1984, at www.x.org, 6/24/1991."
    found = {(f.kind, text[f.start : f.end]) for f in find(text, ("url", "date"))}
    assert found == {("url", "https://example.com/a_(b)"), ("url", "www.x.org"), ("date", "3 May 1984"),
                     ("date", "6/24/1991")}  # fmt: skip
    assert find(text) == []


def test_an_unknown_kind_is_named():
    with pytest.raises(UsageError, match="did you mean 'email'"):
        find("x", ("emial",))


@given(st.text(alphabet="ab1 0-.@:/+()x=\n'", max_size=120))
def test_findings_lie_in_the_text_apart_and_in_order(text):
    last = 0
    for kind, start, end in find(text, [k for k in KINDS if k != "name"]):
        assert last <= start < end <= len(text)
        assert kind in KINDS
        last = end


def test_hostile_text_takes_linear_time():
    import time

    for piece in (
        "1-",
        "(0)",
        "a.",
        "a@",
        "::",
        "1 2345 ",
        "eyJa.",
        "-----BEGIN PRIVATE KEY-----",
        "password=",
        "=' ",
        "a@b.co ",
        "https://a" + ")" * 9000,
    ):
        text = piece * (200_000 // len(piece))
        began = time.process_time()
        find(text, [k for k in KINDS if k != "name"])
        assert time.process_time() - began < 3, piece


def test_luhn_and_entropy():
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert entropy("abcd") == 2
    assert entropy("aaaa") == 0


def test_the_same_person_has_the_same_stand_in():
    key = Pseudonyms(b"0123456789abcdef")
    assert key.stand_in("email", "Anna@X.org") == key.stand_in("email", "anna@x.org")
    assert key.stand_in("email", "anna@x.org") != key.stand_in("email", "bert@x.org")
    assert key.stand_in("phone", "(212) 555-0187").replace(") ", "").replace("(", "").replace("-", "") == key.stand_in(
        "phone", "2125550187"
    )
    assert key.stand_in("email", "anna@x.org") != Pseudonyms(b"another key 1234").stand_in("email", "anna@x.org")
    assert "0123456789abcdef" not in repr(key)


def test_a_stand_in_belongs_to_nobody():
    key, rng = Pseudonyms(b"0123456789abcdef"), random.Random(1)
    for _ in range(200):
        number = "".join(str(rng.randrange(10)) for _ in range(16))
        assert not luhn(key.stand_in("card", number))
        stand_ins = {"iban": key.stand_in("iban", "DE" + number), "ssn": key.stand_in("ssn", number[:9])}
        assert all(kind not in {f.kind for f in find(f"x {v} y", (kind,))} for kind, v in stand_ins.items())
    assert key.stand_in("ip", "8.8.4.4").startswith("2")
    assert key.stand_in("ip", "2a00::1:2").startswith("2001:db8:")


def test_masks():
    text = "Anna (anna@x.org) pays from 8.8.4.4"
    assert mask(text, find(text)) == "Anna (<EMAIL>) pays from <IP>"


def test_the_stage_finds_masks_and_drops():
    rows = [
        make_record("text", {"text": "mail anna@x.org"}, source="s"),
        make_record("text", {"text": "plain"}, source="s"),
    ]
    found = list(pii_stage("find")(rows))
    assert found[0].meta["pii"] == {"email": 1}
    assert found[1] is rows[1]
    dropped = list(pii_stage("drop")(rows))
    assert dropped == [Dropped(rows[0], "pii-email"), rows[1]]
    turns = [{"role": "user", "content": "I am anna@x.org"}, {"role": "assistant", "content": "Hello"}]
    chat = make_record("messages", {"messages": turns}, source="s")
    (masked,) = pii_stage("mask")([chat])
    assert masked["messages"][0] == {"role": "user", "content": "I am <EMAIL>"}
    assert masked.id == chat.id
    with pytest.raises(UsageError, match="mask"):
        pii_stage("find", pseudonyms=Pseudonyms(b"0123456789abcdef"))


def test_spans_move_with_the_text():
    text = "mail anna@x.org to Berlin now"
    start = text.index("Berlin")
    row = make_record("spans", {"text": text, "spans": [{"start": start, "end": start + 6, "label": "place"},
                                                        [5, 15, "mail"]]}, source="s")  # fmt: skip
    (masked,) = pii_stage("mask")([row])
    place, mail = masked["spans"]
    assert masked["text"][place["start"] : place["end"]] == "Berlin"
    assert masked["text"][mail[0] : mail[1]] == "<EMAIL>"


def test_names_come_from_a_model():
    def names(text):
        at = text.find("Anna")
        return [(at, at + 4)] if at >= 0 else []

    (masked,) = pii_stage("mask", names=names)([make_record("text", {"text": "Anna: anna@x.org"}, source="s")])
    assert masked["text"] == "<NAME>: <EMAIL>"


def test_the_verb(tmp_path, capsys):
    file, out, secret = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "secret"
    file.write_text(json.dumps({"text": "anna@x.org and anna@x.org"}) + "\n" + json.dumps({"text": "plain"}) + "\n")
    assert main(["data", "pii", str(file), "-o", str(out), "--pseudonyms", str(secret)]) == 1
    assert "head -c 32" in capsys.readouterr().err
    secret.write_bytes(b"a very secret secret\n")
    assert main(["data", "pii", str(file), "-o", str(out), "--pseudonyms", str(secret), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["changed"] == {"email": 2}
    first, second = read_records(out)[0]["text"].split(" and ")
    assert first == second != "anna@x.org"
    assert "secret secret" not in shown.out + shown.err + (tmp_path / "b.jsonl.report.json").read_text()
    kept = tmp_path / "left.jsonl"
    assert main(["data", "pii", str(file), "-o", str(out), "--action", "drop", "--dropped", str(kept)]) == 0
    assert [r["text"] for r in read_records(out)] == ["plain"]
    assert read_records(kept)[0].meta["rule"] == "pii-email"


def test_no_secret_file(tmp_path):
    with pytest.raises(NotFound):
        Pseudonyms.from_file(tmp_path / "none")
    with pytest.raises(UsageError):
        Pseudonyms(b"short")
