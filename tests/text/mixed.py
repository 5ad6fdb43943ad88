"""Text of every sort for comparing tokenizers, made of the standard library's sources and of hard cases."""

from __future__ import annotations

import random
from pathlib import Path

HARD = [
    "Hello world", "  two  spaces\n\n\ttab", "12345 3.14 2024-01-01 １２３ ٣٤٥", "don't I'LL we've",
    "été Ünïcødé e\u0301t\u0301", "日本語の文章です。中文文字，测试！한국어 문장", "🤖👩\u200d👩\u200d👧 🇫🇷 👍🏽",
    "\x00\x01\x7f\x80\x9f", "a\r\nb\rc\u2028d\u2029e\x85f", "zero\u200bwidth\u200cjoin\u200der\ufeff",
    "\u0301\u0302 lone marks \u093f", " " * 300, "\t" * 40 + "x", "\n" * 30, "x" * 400, "ａｂｃ ＜／ｓ＞ ﬁ ² ½ Ⅻ ㎏",
    "«quotes» “curly” ‘single’ … — –", "עברית العربية हिन्दी ไทย", "İıſẞß Kelvin \u212a \u212b", "a" + "\u0300" * 50,
    "\U00020000\U0002a6d6𝕬𝖇𝖈", "\u00a0nbsp\u3000wide\u2003em", "price: $1,000.00 #tag @you a_b C++ x**2 <b>",
    "<0x0A> ▁x ▁▁ ĠĊ", "\ufffd\ufffe\U0010ffff", "AbcDEFgHi snake_case camelCaseWord HTTPServer", "   leading",
    "trailing   ",
]  # fmt: skip


def mixed(size: int, seed: int = 7) -> list[str]:
    """Texts of `size` bytes in all (UTF-8): prose and code, and hard cases in random mixture."""
    dice = random.Random(seed)
    texts: list[str] = []
    total = 0
    sources = sorted(Path(random.__file__).parent.glob("*.py"))
    while total < size:
        if len(texts) % 2:
            text = "".join(dice.choice([*HARD, " ", "\n", " and ", "。"]) for _ in range(dice.randint(1, 12)))
        else:
            text = dice.choice(sources).read_text(encoding="utf-8", errors="replace")
            start = dice.randrange(max(1, len(text) - 4000))
            text = text[start : start + dice.randint(1, 4000)]
        texts.append(text)
        total += len(text.encode())
    return texts
