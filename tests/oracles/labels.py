"""Votes and label re-ranking as the winners describe them: one query, one neighbor at a time."""

import numpy as np


def vote(index, score, labels, queries, centers, top, power, class_power, floor, reduce):
    """`[(class, score), ...]` per query, best first."""
    out = []
    for q in range(len(index)):
        totals = {}
        used = 0
        for row, s in zip(index[q], score[q], strict=True):
            if row < 0 or labels[row] < 0 or used == top:
                continue
            used += 1
            label = int(labels[row])
            value = s if power == 1 else max(s, 0.0) ** power
            if class_power:
                cosine = max(float(np.dot(queries[q], sub)) for sub in centers[label])
                value *= max(cosine, floor) ** class_power
            if reduce == "sum":
                totals[label] = totals.get(label, 0.0) + value
            else:
                totals[label] = max(totals.get(label, -np.inf), value)
        out.append(sorted(totals.items(), key=lambda item: (-item[1], item[0])))
    return out


def logit_mix(index, score, queries, centers, weight, top):
    out = []
    for q in range(len(index)):
        head = [max(float(np.dot(queries[q], sub)) for sub in subs) for subs in centers]
        votes = {int(c): float(s) for c, s in zip(index[q], score[q], strict=True) if c >= 0}
        low = min(votes.values(), default=0.0)
        best = sorted(range(len(head)), key=lambda c: -head[c])[:top]
        mixed = {
            c: (1 - weight) * votes.get(c, low) + weight * head[c] for c in set(votes) | set(best)
        }
        out.append(sorted(mixed.items(), key=lambda item: (-item[1], item[0])))
    return out


def predict(vector, own_id, train, train_ids, train_labels, voting):
    """Label, confidence and nearest cosine of one image."""
    near = []
    for row, label in enumerate(train_labels):
        if label >= 0 and train_ids[row] != own_id:
            near.append((float(np.dot(vector, train[row])), int(label)))
    near = sorted(near, key=lambda pair: -pair[0])[:voting]
    totals = {}
    for cosine, label in near:
        totals[label] = totals.get(label, 0.0) + cosine
    label = min(totals, key=lambda one: (-totals[one], one))
    return label, totals[label] / voting, max(c for c, one in near if one == label)


def soft(index, score, query_label, gallery_predictions, same, other):
    out = []
    for q in range(len(index)):
        scored = []
        for row, s in zip(index[q], score[q], strict=True):
            label, _, cosine = gallery_predictions[row]
            scored.append((s + (same if label == query_label[q][0] else -other) * cosine, row))
        out.append([row for _, row in sorted(scored, key=lambda pair: (-pair[0], pair[1]))])
    return out


def sort_insert(index, query_predictions, gallery_predictions, own, threshold):
    """The lists of the 2019 winner; `threshold` None leaves the insert step out."""
    out = []
    for q in range(len(index)):
        label, sure, _ = query_predictions[q]
        row = list(index[q])
        positive = [i for i in row if gallery_predictions[i][0] == label]
        rest = [i for i in row if gallery_predictions[i][0] != label]
        added = []
        if threshold is not None:
            for i, (other, other_sure, _) in enumerate(gallery_predictions):
                if (
                    other == label
                    and i not in row
                    and i != own[q]
                    and sure + other_sure > threshold
                ):
                    added.append((-other_sure, i))
        out.append((positive + [i for _, i in sorted(added)] + rest)[: len(row)])
    return out


def trimmed_center(images, keep, cosine, rounds, fewest):
    """Unit mean of the images of one class without outliers; 3rd place of Humpback 2019."""

    def unit_mean(members):
        mean = np.mean(members, axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    members = list(images)
    for _ in range(rounds):
        if len(members) < fewest:
            break
        center = unit_mean(members)
        near = [float(np.dot(one, center)) for one in members]
        passing = [one for one, value in zip(members, near, strict=True) if value > cosine]
        least = max(int(len(members) * keep + 1e-9), 1)
        if len(passing) >= least:
            members = passing
        else:
            best = sorted(range(len(members)), key=lambda i: (-near[i], i))[:least]
            members = [members[i] for i in sorted(best)]
    return unit_mean(members)


def nearest_classes(query, centers, k):
    """`[(class, cosine), ...]` by the best sub-centre of classes that have one, best first."""
    scored = [
        (max(float(np.dot(query, sub)) for sub in subs), c)
        for c, subs in enumerate(centers)
        if np.any(subs)
    ]
    return [(c, s) for s, c in sorted(scored, key=lambda pair: (-pair[0], pair[1]))[:k]]
