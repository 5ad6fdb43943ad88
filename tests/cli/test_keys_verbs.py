"""`ladderlm keys`, `users` and `usage`, as one types them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time

import pytest

from ladderlm.cli.main import main
from ladderlm.serve.accounts import Accounts, list_keys

Output = pytest.CaptureFixture[str]


def said(capsys: Output, *argv: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(list(argv)) == code
    return capsys.readouterr().out


def test_a_key_from_the_shell_is_the_servers(capsys: Output) -> None:
    out = said(capsys, "keys", "create", "laptop", "--user", "anna", "--scopes", "chat,embed", "--expires", "30d",
               "--tokens-per-day", "1000")  # fmt: skip
    text = out.strip()
    who = Accounts().who(text)
    assert (who.role, who.scopes, who.limits.tokens_per_day) == ("user", {"chat", "embed"}, 1000)
    (key,) = list_keys()
    assert key.expires == pytest.approx(time.time() + 30 * 86400, abs=60)
    listed = json.loads(said(capsys, "keys", "list", "--json"))
    assert [(k["user"], k["name"], k["begins"]) for k in listed] == [("anna", "laptop", key.prefix)]
    assert text not in json.dumps(listed)
    said(capsys, "keys", "revoke", key.prefix)
    with pytest.raises(PermissionError, match="revoked"):
        Accounts().who(text)
    acts = [row["act"] for row in json.loads(said(capsys, "usage", "audit", "--json"))]
    assert acts == ["revoke key", "create key", "create user"]


def test_users_are_made_given_out_and_erased(capsys: Output) -> None:
    id = said(capsys, "users", "create", "anna", "--role", "admin").strip()
    assert [u["name"] for u in json.loads(said(capsys, "users", "list", "--json"))] == ["local", "anna"]
    assert json.loads(said(capsys, "users", "export", "anna").splitlines()[0])["id"] == id
    said(capsys, "users", "erase", "anna")
    said(capsys, "users", "export", "anna", code=1)


def test_usage_is_summed_and_exported(capsys: Output) -> None:
    from contextlib import closing

    from ladderlm import store
    from ladderlm.serve import log
    from ladderlm.serve.trail import Trail
    from ladderlm.types import Usage

    with closing(store.database()) as db:
        log.write(
            db,
            [
                Trail(f"req_{i}", "POST", route="/v1/x", model="m", status=200 + 204 * i, spent=Usage(3, 4))
                for i in range(2)
            ],
        )
    sums = json.loads(said(capsys, "usage", "--by", "model,user", "--json"))
    assert [(s["model"], s["user"], s["requests"], s["prompt_tokens"]) for s in sums] == [("m", "user-local", 2, 6)]
    rows = list(csv.DictReader(io.StringIO(said(capsys, "usage", "requests", "--format", "csv", "--status", "4"))))
    assert [r["request"] for r in rows] == ["req_1"]
    assert said(capsys, "usage", "requests", "--until", "1d") == ""
    assert len(said(capsys, "usage", "requests", "--since", "1d").splitlines()) == 2


@pytest.mark.parametrize(
    "argv", [["keys", "create", "x", "--expires", "soon"], ["keys", "create", "x", "--scopes", "all"],
             ["keys", "create", "x", "--tokens-per-day", "0"], ["usage", "--by", "shoe"], ["keys", "mend"]],
)  # fmt: skip
def test_what_makes_no_sense_is_told(argv: list[str]) -> None:
    assert main(argv) == 2
    assert list_keys() == []


def test_help_needs_no_web_framework() -> None:
    code = "import sys, ladderlm.cli.main as m; m.main(['keys', 'list']); m.main(['keys'])\n"
    code += "sys.exit(bool({'fastapi', 'starlette', 'torch', 'numba'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
