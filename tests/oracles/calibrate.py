"""Calibration the slow way: searches, loops and bins one by one."""

import numpy as np
from scipy.optimize import minimize


def logistic(scores, same):
    """Slope and shift that minimise Platt's loss, by a search without derivatives."""
    right, wrong = sum(same), len(same) - sum(same)
    high, low = (right + 1) / (right + 2), 1 / (wrong + 2)

    def loss(parameters):
        total = 0.0
        for score, is_same in zip(scores, same, strict=True):
            z = parameters[0] * score + parameters[1]
            target = high if is_same else low
            total += np.logaddexp(0, -z) * target + np.logaddexp(0, z) * (1 - target)
        return total

    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000}
    return minimize(loss, [0.0, 0.0], method="Nelder-Mead", options=options).x


def isotonic_steps(scores, same):
    """Mean score and share of each step: pool neighbors while the later has no larger share."""
    pools = []
    for score in sorted(set(scores)):
        group = [bool(y) for s, y in zip(scores, same, strict=True) if s == score]
        pools.append(([score] * len(group), group))
        while len(pools) > 1 and np.mean(pools[-2][1]) >= np.mean(pools[-1][1]):
            last = pools.pop()
            pools[-1] = (pools[-1][0] + last[0], pools[-1][1] + last[1])
    return [(np.mean(s), np.mean(y)) for s, y in pools]


def reliability(probability, same, bins):
    """Confidence, accuracy and count of each bin, and the expected calibration error."""
    rows, error = [], 0.0
    for b in range(bins):
        inside = [
            (p, y)
            for p, y in zip(probability, same, strict=True)
            if b / bins <= p < (b + 1) / bins or (b == bins - 1 and p == 1)
        ]
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            error += len(inside) / len(same) * abs(accuracy - confidence)
            rows.append((confidence, accuracy, len(inside)))
    return rows, error
