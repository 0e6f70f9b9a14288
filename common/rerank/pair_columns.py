"""The columns of `common.rerank.pairs`, computed for a block of queries at a time."""

from __future__ import annotations

import torch

from common.types import Embeddings, Neighbors

_FAR = 1 << 30  # the rank of what is not listed


class Classes:
    """Sums and sizes of the classes that are listed somewhere."""

    def __init__(self, gallery: Embeddings, labels: torch.Tensor, index: torch.Tensor) -> None:
        self.labels, home = labels, labels.device
        listed = torch.unique(labels[index.clamp(min=0)]) if len(labels) else labels
        self.used = listed[listed >= 0]
        dim = gallery.vectors.shape[1]
        # One row more, for what has no used label.
        self.sums = torch.zeros(len(self.used) + 1, dim, dtype=torch.float64, device=home)
        self.place = self.find(labels)
        for rows in torch.split(torch.arange(len(labels), device=home), 1 << 16):
            self.sums.index_add_(0, self.place[rows], gallery.vectors[rows].double())
        self.sizes = torch.bincount(self.place, minlength=len(self.sums))
        self.norms = self.sums.square().sum(1)

    def find(self, labels: torch.Tensor) -> torch.Tensor:
        """Place of each label among the used ones, the last place for others."""
        if not len(self.used):
            return torch.zeros_like(labels)
        at = torch.searchsorted(self.used, labels).clamp(max=len(self.used) - 1)
        return torch.where(self.used[at] == labels, at, len(self.used))


class Block:
    """Some queries with their candidates: (B, K) tensors, NaN or -inf where there is no pair."""

    def __init__(
        self,
        queries: Embeddings,
        gallery: Embeddings,
        index: torch.Tensor,
        real: torch.Tensor,
        own: torch.Tensor,
        rows: slice,
    ) -> None:
        self.index, self.real, self.own, self.gallery = index, real, own, gallery
        self.vectors = queries.vectors[rows].to(index.device)
        # As `search` rounds: its scores of the candidates' neighbors are compared with these.
        cosine = dots(self.vectors, gallery.vectors, index).float()
        self.cosine = cosine.masked_fill(~real, torch.nan)
        self.by_index = torch.where(real, index, _FAR).argsort(1)
        ordered = cosine.masked_fill(~real, -torch.inf).gather(1, self.by_index)
        by_cosine = ordered.argsort(dim=1, descending=True, stable=True)
        self.order = self.by_index.gather(1, by_cosine)
        self.rank = torch.empty_like(self.order).scatter_(
            1, self.order, torch.arange(index.shape[1], device=index.device).expand_as(index)
        )
        self.best_first = self.cosine.gather(1, self.order)

    def own_columns(self) -> dict[str, torch.Tensor]:
        """Where the pair stands in its list."""
        after = torch.nn.functional.pad(self.best_first[:, 1:], (0, 1), value=torch.nan)
        return {
            "cosine": self.cosine,
            "rank": self.rank,
            "gap_best": self.best_first[:, :1] - self.cosine,
            "gap_next": (self.best_first - after).gather(1, self.rank),
        }

    def neighborhood(
        self, near: Neighbors, place: torch.Tensor, sizes: list[int]
    ) -> dict[str, torch.Tensor]:
        """How near the two are for images of their neighborhoods."""
        spots = place[self.index.clamp(min=0)]
        rows, score = near.index[spots], near.score[spots]
        most = rows.shape[2] - 1
        mine = rows == self.own[:, None, None]
        at = torch.where(mine.any(2), mine.to(torch.uint8).argmax(2), most)[..., None]
        keep = torch.arange(most, device=rows.device).expand(*at.shape[:2], -1)
        keep = keep + (keep >= at)
        rows, score = rows.gather(2, keep), score.gather(2, keep)
        score = score.masked_fill(rows < 0, torch.nan)
        columns = {
            "reverse_rank": (score > self.cosine[..., None]).sum(2),
            "reverse_gap": score[..., 0] - self.cosine,
        }
        members = torch.cat([self.index[..., None], rows[..., :-1]], 2)
        theirs = self._ranks(members)
        listed = self.real.sum(1)[:, None]
        for k in sizes:
            spread = {
                "query": _spread(self.best_first[:, None, :k]),
                "candidate": _spread(score[..., :k]),
            }
            for name, (mean, std) in spread.items():
                columns[f"{name}_mean_{k}"] = mean.expand_as(self.cosine)
                columns[f"{name}_std_{k}"] = std.expand_as(self.cosine)
                apart = torch.where(std > 1e-6, (self.cosine - mean) / std, torch.nan)
                columns[f"{name}_z_{k}"] = apart
            shared = (theirs[..., :k] < k).sum(2)
            union = listed.clamp(max=k) + (members[..., :k] >= 0).sum(2) - shared
            columns[f"shared_{k}"] = shared / union
        return columns

    def of_classes(self, classes: Classes) -> dict[str, torch.Tensor]:
        """What speaks for the candidate's class, the query itself left out."""
        label = classes.labels[self.index.clamp(min=0)].masked_fill(~self.real, -1)
        known = label >= 0
        same = (label[:, :, None] == label[:, None, :]) & known[:, :, None]
        cosine = self.cosine.masked_fill(~self.real, -torch.inf)[:, None]
        best = cosine.masked_fill(~same, -torch.inf).amax(2)
        other = cosine.masked_fill(same, -torch.inf).amax(2)
        listed = same.sum(2)
        total = self.cosine.nan_to_num(0.0)[:, None].masked_fill(~same, 0.0).sum(2)
        lead = self.rank[:, None].masked_fill(~same, _FAR).amin(2)
        first = known & (self.rank == lead)
        place = classes.find(label)
        mine = torch.where(self.own >= 0, classes.labels[self.own.clamp(min=0)], -2)
        inside = (label == mine[:, None]).double()
        own = self.gallery.vectors[self.own.clamp(min=0)].double()
        asked = self.vectors.double()
        size = classes.sizes[place] - inside
        dot = dots(asked, classes.sums, place) - inside * (asked * own).sum(1)[:, None]
        norm = classes.norms[place] - inside * (
            2 * dots(own, classes.sums, place) - own.square().sum(1)[:, None]
        )
        columns = {
            "class_size": size,
            "class_listed": listed,
            "class_best": best,
            "class_mean_listed": total / listed,
            "class_rank": (first[:, None] & (lead[:, None] < lead[..., None])).sum(2),
            "class_lead": torch.where(other > -torch.inf, best - other, torch.nan),
            "class_mean": dot / size,
            "class_center": torch.where(norm > 1e-9, dot * norm.clamp(min=1e-9).rsqrt(), torch.nan),
        }
        return {
            name: value.double().masked_fill(~known, torch.nan) for name, value in columns.items()
        }

    def _ranks(self, members: torch.Tensor) -> torch.Tensor:
        """Rank in the query's list of gallery rows `(B, K, M)`, `_FAR` for what is not listed."""
        ascending = torch.where(self.real, self.index, _FAR).gather(1, self.by_index)
        wanted = members.flatten(1)
        at = torch.searchsorted(ascending, wanted).clamp(max=ascending.shape[1] - 1)
        found = ascending.gather(1, at) == wanted
        rank = self.rank.gather(1, self.by_index).gather(1, at)
        return torch.where(found, rank, _FAR).view_as(members)


def dots(a: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Inner products of `a` `(B, D)` with its own `rows[index]` `(B, K, D)`, `(B, K)` float64."""
    near = rows[index.clamp(min=0)].double()
    near *= a.to(rows.device, torch.float64)[:, None]
    return near.sum(2)


def _spread(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over the last dimension of what is not NaN."""
    mean = values.nanmean(-1)
    return mean, (values - mean[..., None]).square().nanmean(-1).sqrt()
