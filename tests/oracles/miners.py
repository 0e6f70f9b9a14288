"""The miners as loops over Python numbers: one anchor, one positive, one negative at a time."""


def split(distances, labels, reference_labels=None, own=False):
    """Per anchor: (distance, column) of its positives and of its negatives, in column order."""
    labels = labels.tolist()
    references = labels if reference_labels is None else reference_labels.tolist()
    own = own or reference_labels is None
    for row, label in enumerate(labels):
        near, far = [], []
        for column, other in enumerate(references):
            if label == -1 or other == -1:
                continue
            if label != other:
                far.append((distances[row][column].item(), column))
            elif not (own and row == column):
                near.append((distances[row][column].item(), column))
        yield row, near, far


def nearest(pairs):
    """The smallest distance, the lower column on ties."""
    return min(pairs, key=lambda pair: (pair[0], pair[1]))


def farthest(pairs):
    """The largest distance, the lower column on ties."""
    return max(pairs, key=lambda pair: (pair[0], -pair[1]))


def triplets(keep):
    """The miner of all triplets whose distances D_ap and D_an pass `keep`."""

    def mine(distances, labels, *more, margin=0.2, **options):
        return [
            (a, p, n)
            for a, near, far in split(distances, labels, *more, **options)
            for ap, p in near
            for an, n in sorted(far)
            if keep(ap, an, margin)
        ]

    return mine


def semi_hard_pair(distances, labels, *more, **options):
    found = []
    for a, near, far in split(distances, labels, *more, **options):
        for ap, p in near:
            beyond = [pair for pair in far if pair[0] > ap]
            if far:
                found.append((a, p, (nearest(beyond) if beyond else farthest(far))[1]))
    return found


def per_anchor(positive, beyond):
    """The miner of one triplet per anchor: its `positive`, and the nearest negative (beyond it)."""

    def mine(distances, labels, *more, **options):
        found = []
        for a, near, far in split(distances, labels, *more, **options):
            if near:
                ap, p = positive(near)
                far = [pair for pair in far if pair[0] > ap] if beyond else far
                if far:
                    found.append((a, p, nearest(far)[1]))
        return found

    return mine


def n_hard(distances, labels, *more, positives=(1, 3), negatives=(1, 3), **options):
    found = []
    for a, near, far in split(distances, labels, *more, **options):
        hardest = sorted(near, key=lambda pair: (-pair[0], pair[1]))
        for _, p in hardest[positives[0] - 1 : positives[1]]:
            for _, n in sorted(far)[negatives[0] - 1 : negatives[1]]:
                found.append((a, p, n))
    return found


def batch_ohnm(distances, labels, *more, **options):
    return [
        (a, p, nearest(far)[1])
        for a, near, far in split(distances, labels, *more, **options)
        for _, p in near
        if far
    ]


def multi_similarity_pairs(distances, labels, *more, epsilon=0.1, **options):
    positives, negatives = [], []
    for a, near, far in split(distances, labels, *more, **options):
        if near and far:
            positives += [(a, p) for ap, p in near if ap > nearest(far)[0] - epsilon]
            negatives += [(a, n) for an, n in far if an < farthest(near)[0] + epsilon]
    return positives, negatives


MINERS = {
    "all_triplets": triplets(lambda ap, an, margin: True),
    "easy_triplets": triplets(lambda ap, an, margin: an > ap + margin),
    "hard_triplets": triplets(lambda ap, an, margin: an <= ap),
    "semi_hard_band": triplets(lambda ap, an, margin: ap < an <= ap + margin),
    "semi_hard_pair": semi_hard_pair,
    "semi_hard_anchor": per_anchor(farthest, beyond=True),
    "batch_hard": per_anchor(farthest, beyond=False),
    "easy_positive": per_anchor(nearest, beyond=False),
    "easy_positive_semi_hard": per_anchor(nearest, beyond=True),
    "n_hard": n_hard,
    "batch_ohnm": batch_ohnm,
}
