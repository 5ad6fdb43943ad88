"""What a comparison of two forms of a model finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from ladderlm.types import Value


@dataclass(frozen=True, slots=True)
class Check(Value):
    """One thing looked at. `words` say what was found, in a user's words; `cure` what to do about it."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    words: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Verdict(Value):
    """Whether `a` and `b` are the same model, and what that rests on."""

    a: str
    b: str
    same: bool
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, a: str, b: str, checks: Sequence[Check]) -> Self:
        """The same if something was looked at and nothing failed."""
        states = {check.status for check in checks}
        return cls(a, b, "passed" in states and "failed" not in states, tuple(checks))

    @property
    def words(self) -> str:
        """One line: the same model, or what differs."""
        failed = [check for check in self.checks if check.status == "failed"]
        if not failed:
            return "the same model" if self.same else "nothing could be compared"
        found = "; ".join(f"{check.name}: {check.words}" for check in failed)
        return f"NOT the same model ({len(failed)} of {len(self.checks)} checks failed): {found}"


def passed(name: str, words: str) -> Check:
    return Check(name, "passed", words)


def failed(name: str, words: str, cure: str) -> Check:
    return Check(name, "failed", words, cure)


def skipped(name: str, words: str) -> Check:
    return Check(name, "skipped", words)
