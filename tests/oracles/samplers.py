"""The level of `ClassBalanced` by bisection."""


def balanced_shares(counts, power, total):
    """`max(n, t n^power)` per class, for the t at which they add up to `total`."""
    low, high = 0.0, float(total)
    for _ in range(200):
        middle = (low + high) / 2
        if sum(max(n, middle * n**power) for n in counts) < total:
            low = middle
        else:
            high = middle
    return [max(n, high * n**power) for n in counts]
