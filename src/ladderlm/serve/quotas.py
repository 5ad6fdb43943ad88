"""How much a key may ask for: requests and tokens a minute (buckets that refill), tokens a day and a month (counted).

What a request takes is known when it ends: those that run at once may together pass a limit of tokens, once; the next
ones then wait until it is made good.
"""

from __future__ import annotations

import calendar
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ladderlm import store
from ladderlm.errors import Overloaded
from ladderlm.serve.accounts import Limits, Who

Headers = dict[str, str]


class OverQuota(Overloaded):
    """The key has used up what it may; `wait` seconds until there is more."""

    def __init__(self, what: str, wait: float, code: str, headers: Headers) -> None:
        super().__init__(what, cure=f"try again in {math.ceil(wait)} s")
        self.wait, self.code, self.headers = wait, code, headers


@dataclass(slots=True)
class Bucket:
    """Holds `limit`, refills in a minute, and may be in debt."""

    limit: int
    level: float
    at: float

    def refill(self, now: float) -> None:
        self.level = min(self.limit, self.level + (now - self.at) * self.limit / 60)
        self.at = now

    def until(self, level: float) -> float:
        """Seconds until it holds so much."""
        return max(0.0, (level - self.level) * 60 / self.limit)


@dataclass(slots=True)
class _Account:
    limits: Limits
    buckets: dict[str, Bucket] = field(default_factory=dict)
    day: str = ""
    today: int = 0
    month: int = 0  # tokens of the month before today


class Quotas:
    """Of every key that was used since the start. Days and months are UTC's."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._lock = threading.Lock()

    def admit(self, who: Who) -> Headers:
        """Counts one request; the headers that tell how much is left. OverQuota when it is too much."""
        if who.limits == Limits():
            return {}
        with self._lock:
            account, now = self._account(who), self._clock()
            for bucket in account.buckets.values():
                bucket.refill(now)
            headers = _headers(account)
            requests, tokens = account.buckets.get("requests"), account.buckets.get("tokens")
            if requests and requests.level < 1:
                raise OverQuota("too many requests a minute", requests.until(1), "rate_limit_exceeded", headers)
            if tokens and tokens.level <= 0:
                raise OverQuota("too many tokens a minute", tokens.until(1), "rate_limit_exceeded", headers)
            day, month = account.limits.tokens_per_day, account.limits.tokens_per_month
            if day is not None and account.today >= day:
                raise OverQuota("today's tokens are used up", _to_midnight(now), "insufficient_quota", headers)
            if month is not None and account.month + account.today >= month:
                raise OverQuota("this month's tokens are used up", _to_month(now), "insufficient_quota", headers)
            if requests:
                requests.level -= 1
            return _headers(account)

    def spend(self, who: Who, tokens: int) -> None:
        """Takes what a request read and wrote."""
        if tokens and who.limits != Limits():
            with self._lock:
                account, now = self._account(who), self._clock()
                account.today += tokens
                if bucket := account.buckets.get("tokens"):
                    bucket.refill(now)
                    bucket.level -= tokens

    def _account(self, who: Who) -> _Account:
        now = self._clock()
        day = time.strftime("%Y-%m-%d", time.gmtime(now))
        account = self._accounts.get(who.key)
        if account is None or account.limits != who.limits:
            account = self._accounts[who.key] = _Account(who.limits)
            for name, limit in (
                ("requests", who.limits.requests_per_minute),
                ("tokens", who.limits.tokens_per_minute),
            ):
                if limit is not None:
                    account.buckets[name] = Bucket(limit, limit, now)
            account.day = day
            account.today, account.month = _used(who.key, day)
        elif account.day != day:
            same = account.day[:7] == day[:7]
            account.month, account.today, account.day = (account.month + account.today) * same, 0, day
        return account


def _used(key: str, day: str) -> tuple[int, int]:
    """Tokens of today, and of this month before today, by what was written down."""
    query = "SELECT day, sum(prompt_tokens + completion_tokens) FROM usage WHERE key = ? AND day >= ? GROUP BY day"
    with store.reading() as db:
        found = {row[0]: int(row[1]) for row in db.execute(query, (key, day[:7] + "-01"))}
    today = found.pop(day, 0)
    return today, sum(found.values())


def _headers(account: _Account) -> Headers:
    """As OpenAI's API has them."""
    headers: Headers = {}
    for name, bucket in account.buckets.items():
        headers[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level)))
        headers[f"x-ratelimit-reset-{name}"] = _lasting(bucket.until(bucket.limit))
    return headers


def _lasting(seconds: float) -> str:
    """ "850ms", "6.1s", "1m3s"."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    return f"{seconds:.1f}s" if seconds < 60 else f"{int(seconds // 60)}m{int(seconds % 60)}s"


def _to_midnight(now: float) -> float:
    return 86400 - now % 86400


def _to_month(now: float) -> float:
    then = time.gmtime(now)
    year, month = (then.tm_year, then.tm_mon + 1) if then.tm_mon < 12 else (then.tm_year + 1, 1)
    return calendar.timegm((year, month, 1, 0, 0, 0)) - now
