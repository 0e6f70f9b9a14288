"""Graph-network re-ranking with dense matrices, one image at a time."""

import torch


def gnn_rerank(queries, gallery, k1=26, k2=7, lambda_value=0.3, layers=2):
    """Scores `(Q, G)` float32; the rows are unit vectors."""
    images = torch.cat([queries, gallery])
    similarity = images @ images.T
    value, ranking = similarity.topk(min(k1, len(images)), dim=1)
    lists = torch.zeros_like(similarity)
    for image, row in enumerate(ranking):
        lists[image, row] = 1
    for _ in range(layers):
        both = lists + lists.T
        lists = torch.zeros_like(lists)
        for image in range(len(images)):
            for rank in range(min(k2, ranking.shape[1])):
                lists[image] += value[image, rank] ** 2 * both[ranking[image, rank]]
        lists /= lists.norm(dim=1, keepdim=True)
    if not layers:
        lists /= lists.norm(dim=1, keepdim=True)
    asked, others = lists[: len(queries)], lists[len(queries) :]
    return (1 - lambda_value) * asked @ others.T + lambda_value * queries @ gallery.T
