"""Licences: names as people write them, expressions, the filter, and the card's flags."""

import json

import pytest

from ladderlm.cli.main import main
from ladderlm.data.licences import allowed, licence_stage, plain_name, terms
from ladderlm.data.records import make_record, read_records
from ladderlm.data.stages import Dropped
from ladderlm.errors import UsageError
from ladderlm.models.card import licence_flags

TABLE = [  # licence, commercial, permissive, share alike
    ("MIT", True, True, False),
    ("Apache 2.0", True, True, False),
    ("Apache License, Version 2.0", True, True, False),
    ("BSD-3-Clause", True, True, False),
    ("PSF-2.0", True, True, False),
    ("CC0-1.0", True, True, False),
    ("Public domain (works published before 1929)", True, True, False),
    ("CC BY 4.0", True, True, False),
    ("https://creativecommons.org/licenses/by-nc-sa/4.0/", False, False, True),
    ("https://creativecommons.org/publicdomain/zero/1.0/", True, True, False),
    ("Creative Commons Attribution-ShareAlike 4.0", True, False, True),
    ("Creative Commons Attribution-NonCommercial 4.0 International", False, False, None),
    ("CC-BY-SA-3.0", True, False, True),
    ("cc-by-nd-4.0", True, False, True),
    ("GPL-3.0-or-later", True, False, True),
    ("LGPL-2.1", True, False, True),
    ("ODbL-1.0", True, False, True),
    ("llama3.1", None, False, None),
    ("gemma", None, False, None),
    ("unknown", None, False, None),
    ("", None, False, None),
    ("My Own Terms 3", None, False, None),
    ("MIT OR GPL-3.0", True, True, False),
    ("MIT AND CC-BY-SA-4.0", True, False, True),
    ("CC-BY-4.0 and CC-BY-NC-4.0", False, False, None),
    ("MIT and unknown", None, False, None),
    ("GPL-2.0 WITH Classpath-exception-2.0", True, False, True),
]


@pytest.mark.parametrize(("licence", "commercial", "permissive", "share_alike"), TABLE)
def test_what_licences_allow(licence, commercial, permissive, share_alike):
    found = terms(licence)
    assert (found.commercial, found.permissive, found.share_alike) == (commercial, permissive, share_alike)


def test_a_licence_by_name():
    assert plain_name("CC BY-SA 4.0") == plain_name("cc_by_sa-4.0") == "cc-by-sa-4.0"
    assert allowed("Apache 2.0", "apache-2.0")
    assert not allowed("MIT", "apache-2.0")


def test_the_filter_counts_why():
    rows = [make_record("text", {"text": name}, source="s", licence=name)
            for name in ("MIT", "CC BY-NC 4.0", "unknown", "gemma", "CC BY-SA 4.0")]  # fmt: skip
    found = list(licence_stage("commercial")(rows))
    assert [item.rule for item in found if isinstance(item, Dropped)] == [
        "licence-noncommercial", "licence-unknown", "licence-restricted"
    ]  # fmt: skip
    assert [r.licence for r in licence_stage("permissive")(rows) if not isinstance(r, Dropped)] == ["MIT"]
    with pytest.raises(UsageError):
        licence_stage(" ")


def test_the_card_tells_the_conditions():
    lineage = {"licence": "MIT", "data": [{"name": "a", "licence": "CC BY-NC-SA 4.0 and GPL-3.0"}, {"name": "b"}]}
    assert licence_flags(lineage) == [
        "data a (CC BY-NC-SA 4.0 and GPL-3.0): non-commercial use only",
        "data a (CC BY-NC-SA 4.0 and GPL-3.0): share alike",
    ]


def test_the_verb(tmp_path, capsys):
    file, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    rows = [{"text": "x", "licence": "MIT"}, {"text": "y", "licence": "cc-by-nc-4.0"}, {"text": "z"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "licences", str(file), "--json"]) == 0
    assert {r["licence"]: r["commercial"] for r in json.loads(capsys.readouterr().out)} == {
        "MIT": "yes", "cc-by-nc-4.0": "no", "unknown": "unclear"
    }  # fmt: skip
    assert main(["data", "licences", str(file), "--licence", "commercial", "-o", str(out)]) == 0
    assert [r["text"] for r in read_records(out)] == ["x"]
    assert main(["data", "licences", str(file), "--licence", "commercial"]) == 2
