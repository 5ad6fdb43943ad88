"""What hosted tokens cost, as far as the user has told: [prices] in the workspace's config.toml.

    [prices."some-model"]
    input = 0.15    # per million tokens
    output = 0.60

No price list is shipped: prices change, and a stale one is worse than none.
"""

from __future__ import annotations

from ladderlm import config
from ladderlm.errors import UsageError


def price(model: str, read: int, written: int) -> float | None:
    """Cost of `read` prompt tokens and `written` answer tokens in the table's currency; None for unknown models."""
    path = config.user_file()
    entry = config.read_toml(path).get("prices", {}).get(model) if path.exists() else None
    if entry is None:
        return None
    try:
        return (read * float(entry["input"]) + written * float(entry["output"])) / 1e6
    except (KeyError, TypeError, ValueError):
        raise UsageError("a price needs input and output per million tokens", where=f"{path}: {model}") from None
