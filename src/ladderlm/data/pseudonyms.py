"""Stand-ins for personal data: the same person becomes the same stand-in, and without the key nobody can go back.

A stand-in follows from HMAC-SHA256(key, kind and value) (RFC 2104), so that it is the same in every file and run that
uses the key. It has the shape of what it stands for, but can belong to nobody: reserved domains (RFC 2606), class E
and documentation addresses (RFC 1112, RFC 3849), a card whose Luhn digit is wrong, an IBAN whose check digits are
never given out, an area of US social security that is not issued. The key is held in memory only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from pathlib import Path

from ladderlm.data.pii_numbers import luhn
from ladderlm.errors import NotFound, UsageError

LEAST_KEY = 16  # bytes


class Pseudonyms:
    """Keyed stand-ins. `fingerprint` tells two keys apart and says nothing else of them."""

    def __init__(self, key: bytes) -> None:
        if len(key) < LEAST_KEY:
            raise UsageError("the secret of the pseudonyms is too short", cure=f"at least {LEAST_KEY} random bytes")
        self._key = key
        self.fingerprint = hmac.digest(key, b"fingerprint", "sha256")[:4].hex()

    def __repr__(self) -> str:
        return f"Pseudonyms({self.fingerprint})"

    @classmethod
    def from_file(cls, path: str | Path) -> Pseudonyms:
        """The key is the file's bytes, without blanks at the end. Raises NotFound with the way to make one."""
        try:
            return cls(Path(path).read_bytes().rstrip())
        except OSError:
            cure = f"make one: head -c 32 /dev/urandom | base64 > {path}"
            raise NotFound("no readable secret file", where=str(path), cure=cure) from None

    def stand_in(self, kind: str, text: str) -> str:
        """What stands for `text`. Case, blanks and separators make no difference to who is meant."""
        digest = hmac.digest(
            self._key, f"{kind}\0{_normal(kind, text)}".encode("utf-8", "surrogatepass"), hashlib.sha256
        )
        number = int.from_bytes(digest[:16], "big")
        short = base64.b32encode(digest[:5]).decode().lower()
        if kind == "email":
            return f"{short}@example.org"
        if kind == "name":
            return f"Person-{short[:6]}"
        if kind == "url":
            return f"https://{short}.example.org/"
        if kind == "ip":
            return _address(text, number)
        if kind == "card":
            digits = _with_digits(text, number, keep=0)
            return (
                digits
                if not luhn("".join(c for c in digits if c.isdigit()))
                else digits[:-1] + str((int(digits[-1]) + 1) % 10)
            )
        if kind == "iban":
            return f"{text[:2]}00{number % 10**16:016d}"
        if kind == "ssn":
            return f"666-{number % 99 + 1:02d}-{number // 100 % 9999 + 1:04d}"
        if kind == "phone":
            return _with_digits(text, number, keep=2 if text.lstrip("(").startswith("+") else 0)
        if kind in ("birth_date", "date"):
            return f"{1900 + number % 100}-{number // 100 % 12 + 1:02d}-{number // 1200 % 28 + 1:02d}"
        return f"{kind.upper()}_{short}"


def _normal(kind: str, text: str) -> str:
    if kind == "ip":
        return str(ipaddress.ip_address(text))
    if kind in ("card", "ssn", "phone"):
        return "".join(c for c in text if c.isdigit())
    if kind == "iban":
        return "".join(c for c in text if c.isalnum()).upper()
    if kind in ("key", "credentials"):
        return text
    return " ".join(text.casefold().split())


def _address(text: str, number: int) -> str:
    if ":" in text:
        return str(ipaddress.IPv6Address(0x20010DB8 << 96 | number % (1 << 64)))
    return str(ipaddress.IPv4Address(0xF0000000 | number % (0xFFFFFFF - 1)))


def _with_digits(text: str, number: int, keep: int) -> str:
    """`text` with other digits, the first `keep` of them and all else as it was."""
    out = []
    for c in text:
        if c.isdigit() and keep <= 0:
            number, digit = divmod(number, 10)
            out.append(str(digit))
        else:
            keep -= c.isdigit()
            out.append(c)
    return "".join(out)
