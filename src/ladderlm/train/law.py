"""How the loss falls with parameters N and tokens D: L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022).

Fitted as there: the Huber loss of the logarithms, from many starts. Each start is followed by Levenberg-Marquardt steps
on the residuals, weighed anew every time so that their squares sum to the Huber loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ladderlm.errors import UsageError
from ladderlm.types import FloatArray, Value

HUBER = 0.01  # beyond a residual of 1 % errors count by their size, not their square: a run that went wrong pulls less
LEAST_RUNS, LEAST_KINDS = 7, 3  # runs, and different N and D among them
STEPS = 80
SHARES = (0.2, 0.6, 0.95)  # of the lowest loss, to start E from
EXPONENTS = (0.15, 0.35, 0.8)
BOUNDS = (0.02, 3.0)  # of exponents
DRAWS = 300


@dataclass(frozen=True, slots=True)
class Point(Value):
    """A run: its model's parameters, the tokens it read, and its loss on unseen text."""

    parameters: int
    tokens: int
    loss: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Law(Value):
    """`e` is the loss that no size and no data gets below."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return float(self.e + self.a * parameters**-self.alpha + self.b * tokens**-self.beta)

    def best(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of the lowest loss where 6 N D is `flops`."""
        both = self.alpha + self.beta
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / both)
        parameters = ratio * (flops / 6) ** (self.beta / both)
        return parameters, flops / 6 / parameters


@dataclass(frozen=True, slots=True)
class Prediction(Value):
    """The loss foretold of a run, and the 95 % interval in which a single run's loss should lie."""

    parameters: int
    tokens: int
    loss: float
    low: float
    high: float


def fit_law(points: Sequence[Point], starts: Sequence[Law] = ()) -> Law:
    """The law nearest to `points`, sought from `starts` or from everywhere.

    Raises UsageError for too few or too similar runs, and for losses that are not positive.
    """
    if not _tell_apart(points):
        raise UsageError(
            f"{len(points)} runs do not tell the law", where=f"needs {LEAST_RUNS} runs of {LEAST_KINDS} sizes and "
            f"{LEAST_KINDS} numbers of tokens", cure="add --sizes and --tokens",
        )  # fmt: skip
    if min(min(p.loss, p.parameters, p.tokens) for p in points) <= 0:
        raise UsageError("losses, parameters and tokens must be above 0", where="points")
    logs_NK = np.log([[p.parameters, p.tokens, p.loss] for p in points])
    middle = logs_NK[:, :2].mean(0)
    n_N, d_N = (logs_NK[:, :2] - middle).T
    begun = [_theta(law, middle) for law in starts] or _starts(logs_NK[:, 2])
    found = [_descend(theta, n_N, d_N, logs_NK[:, 2]) for theta in begun]
    return _law(min(found, key=lambda pair: pair[0])[1], middle)


def predict(points: Sequence[Point], targets: Sequence[tuple[int, int]], seed: int = 0) -> list[Prediction]:
    """The loss of each target (parameters, tokens), with an interval from fits to runs drawn again with replacement.

    To a drawn law's prediction comes the error of a run, drawn from those of the fit.
    """
    law, rng = fit_law(points), np.random.default_rng(seed)
    errors_N = np.log([p.loss / law.loss(p.parameters, p.tokens) for p in points])
    errors_N = errors_N * np.sqrt(len(points) / max(1, len(points) - 5))  # five numbers were fitted
    drawn = list[Law]()
    while len(drawn) < DRAWS:
        some = [points[i] for i in rng.integers(len(points), size=len(points))]
        if _tell_apart(some):
            drawn.append(fit_law(some, [law]))
    out = []
    for parameters, tokens in targets:
        losses = [one.loss(parameters, tokens) * np.exp(rng.choice(errors_N)) for one in drawn]
        low, high = np.percentile(losses, [2.5, 97.5]).tolist()
        loss = law.loss(parameters, tokens)
        out.append(Prediction(parameters, tokens, loss, min(low, loss), max(high, loss)))
    return out


def _tell_apart(points: Sequence[Point]) -> bool:
    kinds = min(len({p.parameters for p in points}), len({p.tokens for p in points}))
    return len(points) >= LEAST_RUNS and kinds >= LEAST_KINDS


# --- Fitting ------------------------------------------------------------------------------------------------------
# theta: the logarithms of the three terms at the middle of the runs, and the two exponents.


def _starts(losses_N: FloatArray) -> list[FloatArray]:
    lowest, middle = np.exp(losses_N.min()), np.exp(losses_N.mean())
    out = []
    for share, alpha, beta in itertools.product(SHARES, EXPONENTS, EXPONENTS):
        left = np.log((middle - share * lowest) / 2)
        out.append(np.array([np.log(share * lowest), left, left, alpha, beta]))
    return out


def _theta(law: Law, middle: FloatArray) -> FloatArray:
    n, d = middle
    return np.array([np.log(law.e), np.log(law.a) - law.alpha * n, np.log(law.b) - law.beta * d, law.alpha, law.beta])


def _law(theta: FloatArray, middle: FloatArray) -> Law:
    e, a, b, alpha, beta = theta.tolist()
    n, d = middle.tolist()
    return Law(float(np.exp(e)), float(np.exp(a + alpha * n)), float(np.exp(b + beta * d)), alpha, beta)


def _residuals(theta: FloatArray, n_N: FloatArray, d_N: FloatArray, y_N: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(residuals of the logarithms r_N, the shares p_3N that the terms have in the loss)."""
    e, a, b, alpha, beta = theta
    terms_3N = np.stack([np.full_like(n_N, e), a - alpha * n_N, b - beta * d_N])
    top_N = terms_3N.max(0)
    parts_3N = np.exp(terms_3N - top_N)
    sum_N = parts_3N.sum(0)
    return top_N + np.log(sum_N) - y_N, parts_3N / sum_N


def _huber(r_N: FloatArray) -> float:
    size_N = np.abs(r_N)
    return float(np.where(size_N <= HUBER, size_N**2 / 2, HUBER * (size_N - HUBER / 2)).sum())


def _descend(theta: FloatArray, n_N: FloatArray, d_N: FloatArray, y_N: FloatArray) -> tuple[float, FloatArray]:
    """(loss, theta) at the end of the way down from `theta`."""
    damping = 1e-2
    r_N, p_3N = _residuals(theta, n_N, d_N, y_N)
    loss = _huber(r_N)
    for _ in range(STEPS):
        jacobian_N5 = np.stack([*p_3N, -p_3N[1] * n_N, -p_3N[2] * d_N], 1)
        weighed_5N = jacobian_N5.T * np.minimum(1.0, HUBER / np.maximum(np.abs(r_N), 1e-12))
        curve_55 = weighed_5N @ jacobian_N5
        step = np.linalg.solve(curve_55 + damping * np.diag(np.diag(curve_55) + 1e-9), weighed_5N @ r_N)
        tried = theta - np.clip(step, -1, 1)
        tried[0] = max(tried[0], -20.0)
        tried[3:] = np.clip(tried[3:], *BOUNDS)
        tried_N, tried_p = _residuals(tried, n_N, d_N, y_N)
        now = _huber(tried_N)
        if now < loss:
            done = loss - now < 1e-12 * (1 + loss)
            theta, r_N, p_3N, loss, damping = tried, tried_N, tried_p, now, max(damping / 5, 1e-9)
            if done:
                break
        else:
            damping *= 4
            if damping > 1e9:
                break
    return loss, theta
