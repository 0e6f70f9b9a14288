"""A memory as a Python list, and two losses against references as loops."""

import math

import torch


class Ring:
    """The last `size` usable rows, oldest first."""

    def __init__(self, size):
        self.size, self.rows = size, []

    def add(self, keys, labels):
        for key, label in zip(keys.detach(), labels.tolist(), strict=True):
            if label != -1 and torch.isfinite(key).all():
                self.rows.append((key.clone(), label))
        self.rows = self.rows[-self.size :]


def _cosines(x, labels, references, own):
    """Per labelled row: cosines to the labelled references of its class, and to the others."""
    unit = [(r / r.norm(), y) for r, y in references]
    for i, label in enumerate(labels.tolist()):
        if label != -1:
            a = x[i] / x[i].norm()
            pairs = [
                (a @ r, y) for j, (r, y) in enumerate(unit) if y != -1 and not (own and i == j)
            ]
            yield [s for s, y in pairs if y == label], [s for s, y in pairs if y != label]


def cosine_contrastive(x, labels, references, own, margin=0.5):
    """Mean of 1 - s over positives plus mean of [s - margin]_+ over negatives."""
    near, far = [], []
    for positives, negatives in _cosines(x, labels, references, own):
        near += [1 - s for s in positives]
        far += [(s - margin).clamp_min(0) for s in negatives]
    return sum(sum(part) / len(part) if part else 0 * x.sum() for part in (near, far))


def info_nce(x, labels, references, own, temperature=0.07):
    """Mean of -log e^(s_p/t) / (e^(s_p/t) + sum_n e^(s_n/t)) over positives with a negative."""
    losses = []
    for positives, negatives in _cosines(x, labels, references, own):
        for s in positives:
            if negatives:
                total = sum(torch.exp((n - s) / temperature) for n in negatives)
                losses.append(torch.log1p(total))
    return sum(losses) / len(losses) if losses else 0 * x.sum()


def moco(queries, keys, queue, temperature):
    """MoCo's Algorithm 1 in the words of its pseudocode: one positive, all of the queue against."""
    losses = []
    for q, k in zip(queries, keys, strict=True):
        logits = [q @ k / temperature, *(q @ n / temperature for n in queue)]
        largest = max(x.item() for x in logits)
        total = sum(torch.exp(x - largest) for x in logits)
        losses.append(torch.log(total) + largest - logits[0])
    return sum(losses) / max(1, len(losses)) if losses else torch.tensor(math.nan)
