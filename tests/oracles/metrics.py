"""The metrics from their definitions: every precision is counted again, nothing is accumulated."""


def gap(solution, predictions):
    given = [i for i in predictions if predictions[i] is not None]
    answerable = sum(1 for labels in solution.values() if labels)

    def not_after(j, i):
        """Prediction j is ranked at or before prediction i."""
        a, b = predictions[j][1], predictions[i][1]
        return a > b or (a == b and j <= i)

    def right(i):
        return predictions[i][0] in solution[i]

    total = 0.0
    for i in given:
        if right(i):
            ahead = [j for j in given if not_after(j, i)]
            total += len([j for j in ahead if right(j)]) / len(ahead)
    return total / answerable if answerable else 0.0


def distinct(items):
    return [item for place, item in enumerate(items) if item not in items[:place]]


def map_at_k(truth, ranked, k):
    values = []
    for i, relevant in truth.items():
        if relevant:
            top = distinct(ranked.get(i, []))[:k]
            precision = [len(set(top[:r]) & set(relevant)) / r for r in range(1, len(top) + 1)]
            gained = [p for p, item in zip(precision, top, strict=True) if item in relevant]
            values.append(sum(gained) / min(len(set(relevant)), k))
    return sum(values) / len(values) if values else 0.0


def mean_f1(truth, matches):
    values = []
    for i, members in truth.items():
        found = set(matches.get(i, []))
        both = len([m for m in set(members) if m in found])
        precision, recall = (both / len(s) if s else 0.0 for s in (found, set(members)))
        values.append(2 * precision * recall / (precision + recall) if both else 0.0)
    return sum(values) / len(values) if values else 0.0


def recall_at_k(truth, ranked, k):
    values = [
        any(item in relevant for item in distinct(ranked.get(i, []))[:k])
        for i, relevant in truth.items()
        if relevant
    ]
    return sum(values) / len(values) if values else 0.0


def market(scores, query_labels, gallery_labels, query_cameras=None, gallery_cameras=None):
    """Ranks of the matches of each query that has one, from the protocol's description.

    Images of the query's label and camera, and junk (-1), are taken out; the rest is walked through
    by score descending, then row ascending.
    """
    found = []
    for q, label in enumerate(query_labels):
        left = []
        for g, other in enumerate(gallery_labels):
            same_camera = query_cameras is not None and query_cameras[q] == gallery_cameras[g]
            if other != -1 and not (other == label and same_camera):
                left.append(g)
        left.sort(key=lambda g: (-scores[q][g], g))
        matches = [rank for rank, g in enumerate(left, 1) if gallery_labels[g] == label]
        if matches and label != -1:
            found.append(matches)
    return found


def market_summary(found, ranks):
    """CMC curve, mAP and mINP from the ranks of the matches."""
    n = max(len(found), 1)
    cmc = [sum(matches[0] <= rank for matches in found) / n for rank in range(1, ranks + 1)]
    ap = [sum((i + 1) / rank for i, rank in enumerate(m)) / len(m) for m in found]
    return cmc, sum(ap) / n, sum(len(m) / m[-1] for m in found) / n
