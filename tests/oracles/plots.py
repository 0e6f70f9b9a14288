"""Slow, obvious twins of the numbers behind common.report.plots."""


def gap_at(score, kind, threshold, positives):
    """Precision and GAP when predictions under `threshold` are left out."""
    pairs = [(s, k) for s, k in zip(score, kind, strict=True) if s >= threshold]
    kept = sorted(pairs, key=lambda pair: -pair[0])
    right, total = 0, 0.0
    for place, (_, k) in enumerate(kept, start=1):
        if k == "right":
            right += 1
            total += right / place
    return right / len(kept), total / positives
