"""Slow twins of common.models.pooling and .fusion: one image, one position at a time."""

import math

import torch


def gem(maps, p, eps=1e-6):
    out = torch.zeros(maps.shape[:2], dtype=torch.float64)
    for b in range(maps.shape[0]):
        for c in range(maps.shape[1]):
            values = [max(v, eps) ** p for v in maps[b, c].double().flatten().tolist()]
            out[b, c] = (sum(values) / len(values)) ** (1 / p)
    return out


def regional(maps, p=2.5, size=5, eps=1e-6):
    """Each position with its window; a step over the border turns round."""
    out = maps.double().clone()
    height, width = maps.shape[2:]

    def inside(i, length):
        while length > 1 and not 0 <= i < length:
            i = -i if i < 0 else 2 * (length - 1) - i
        return i if length > 1 else 0

    for b in range(maps.shape[0]):
        for c in range(maps.shape[1]):
            for y in range(height):
                for x in range(width):
                    total = 0.0
                    for dy in range(-(size // 2), size // 2 + 1):
                        for dx in range(-(size // 2), size // 2 + 1):
                            value = maps[b, c, inside(y + dy, height), inside(x + dx, width)]
                            total += max(float(value), eps) ** p
                    mean = (total / size**2) ** (1 / p)
                    out[b, c, y, x] = 0.5 * float(maps[b, c, y, x]) + 0.5 * mean
    return out


def merged(vectors, how, p):
    """Views `(V, B, D)` merged one number at a time."""
    out = torch.zeros(vectors.shape[1:], dtype=torch.float64)
    for b in range(vectors.shape[1]):
        low = min(vectors[:, b].flatten().tolist())
        for d in range(vectors.shape[2]):
            values = vectors[:, b, d].tolist()
            if how == "mean":
                out[b, d] = sum(values) / len(values)
            elif how == "max":
                out[b, d] = max(values)
            else:
                powers = [(value - low) ** p for value in values]
                out[b, d] = (sum(powers) / len(powers)) ** (1 / p) + low
    return out


def spoc(maps):
    height, width = maps.shape[2:]
    sigma = min(height, width) / 2 / 3
    out, total = torch.zeros(maps.shape[:2], dtype=torch.float64), 0.0
    for y in range(height):
        for x in range(width):
            square = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2
            weight = math.exp(-square / (2 * sigma**2))
            out += weight * maps[:, :, y, x].double()
            total += weight
    return out / total


def rmac(maps, levels=3):
    """Tolias 2016, section 3.2: every count of regions along the long side is tried."""
    height, width = maps.shape[2:]
    short, long = min(height, width), max(height, width)
    count, best = 1, math.inf
    if long > short:
        for m in range(2, 200):
            stride = (long - short) / (m - 1)
            distance = abs((short - stride) / short - 0.4)
            if distance < best:
                count, best = m, distance
    out = torch.zeros(maps.shape[:2], dtype=torch.float64)
    for level in range(1, levels + 1):
        size = max(1, math.floor(2 * short / (level + 1)))
        rows = level + (count - 1 if height > width else 0)
        columns = level + (count - 1 if width > height else 0)
        for i in range(rows):
            for j in range(columns):
                top = math.floor(i * (height - size) / (rows - 1)) if rows > 1 else 0
                left = math.floor(j * (width - size) / (columns - 1)) if columns > 1 else 0
                for b in range(maps.shape[0]):
                    region = maps[b, :, top : top + size, left : left + size].double()
                    peak = torch.tensor([float(channel.max()) for channel in region])
                    out[b] += peak / peak.norm()
    return out


def orthogonal(local, vector):
    """Gram-Schmidt for every position alone."""
    out = local.double().clone()
    for b in range(local.shape[0]):
        unit = vector[b].double() / vector[b].double().norm()
        for y in range(local.shape[2]):
            for x in range(local.shape[3]):
                f = out[b, :, y, x].clone()
                out[b, :, y, x] = f - torch.dot(f, unit) * unit
    return out
