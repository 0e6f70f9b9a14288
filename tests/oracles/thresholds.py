"""Thresholds and the unknown identity, one query and one threshold at a time."""


def f1(score, hits, totals, threshold, own=True):
    total = 0.0
    for row, right, true in zip(score, hits, totals, strict=True):
        kept = [h for s, h in zip(row, right, strict=True) if s >= threshold]
        found = sum(kept) + own
        total += 2 * found / max(len(kept) + own + true, 1)
    return total / len(score)


def ranked(score, index, threshold, unknown, top, offset=None):
    """Classes of one query with the unknown identity before the first that is below."""
    out, placed = [], False
    for s, c in zip(score, index, strict=True):
        if s == float("-inf") or c == unknown:
            continue
        if not placed and s - (offset[c] if offset is not None else 0.0) < threshold:
            out.append(unknown)
            placed = True
        out.append(c)
    if not placed:
        out.append(unknown)
    return out[:top]


def map_at(score, index, truth, threshold, top, offset=None):
    total = 0.0
    for row, classes, true in zip(score, index, truth, strict=True):
        answer = ranked(row, classes, threshold, -1, top, offset)
        total += 1 / (answer.index(true) + 1) if true in answer else 0.0
    return total / len(score)


def filled(answer, order, top):
    return (answer + [c for c in order if c not in answer])[:top]


def refused(score, index, singles, accept):
    """{(query, class)} of one-image classes that have `accept` better queries."""
    out = set()
    for c in singles:
        listed = [
            (-s, q)
            for q, (row, classes) in enumerate(zip(score, index, strict=True))
            for s, i in zip(row, classes, strict=True)
            if i == c and s > float("-inf")
        ]
        out |= {(q, c) for _, q in sorted(listed)[accept:]}
    return out
