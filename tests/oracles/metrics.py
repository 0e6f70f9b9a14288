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
