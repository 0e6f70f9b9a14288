"""Folds by loops over rows and groups."""


def longest_first(sizes, folds):
    """Sorted loads when groups go, largest first, to the fold with the least."""
    load = [0] * folds
    for size in sorted(sizes, reverse=True):
        load[load.index(min(load))] += size
    return sorted(load)


def leaks(groups, train, held_out):
    """Held-out rows for which some row of train has the same group."""
    return [
        bool(h) and any(t and g == other for other, t in zip(groups, train, strict=True))
        for g, h in zip(groups, held_out, strict=True)
    ]
