"""Explore-exploit graph traversal: from neighbor to neighbor, the strongest edge first.

Chang et al., "Explore-Exploit Graph Traversal for Image Retrieval" (CVPR 2019, algorithm 1). Part
of the landmark retrieval 2019 1st place's experiments.
"""

from __future__ import annotations

import torch

from common.rerank.nodes import Nodes, answer, nearest, nodes_of, rank
from common.rerank.voting import group, stack
from common.types import Embeddings, Neighbors

_CELLS = 1 << 26  # bytes of the table of visited images of a block of queries
_STEP = 1e-6  # what a place costs, so that sorting by score keeps the order of visits


def explore_exploit(
    queries: Embeddings,
    gallery: Embeddings,
    *,
    k: int = 100,
    degree: int = 50,
    threshold: float = 0.42,
    exclude_self: bool = False,
    device: torch.device | None = None,
) -> Neighbors:
    """Neighbors in the order in which a walk over the gallery's neighbor graph finds them.

    Explore: the neighbors of the images found last are put on a heap, with the strongest similarity
    to any image found so far. Exploit: the top of the heap is found, and so is each next top above
    `threshold`. Repeated until `k` are found. A low threshold stays near the query, a high one
    follows the strongest edge at each step, as a spanning tree grows.

    The score is the weakest edge so far, less 1e-6 per place; images that the walk does not reach
    follow by similarity - 3. Queries are not in the graph, so the answer to one query does not
    depend on the others. Good where views of one place form chains; a chain may also lead astray.

    Time N^2 D for the graph, Q N D for its entries, Q k^2 for the walks; memory N degree.

    Args:
        queries: `(Q, D)` unit rows.
        gallery: `(N, D)` unit rows.
        k: images that the walk finds, and neighbors of the result.
        degree: neighbors of each image in the graph.
        threshold: similarity from which on to exploit; the authors' value for ROxford.
        exclude_self: leave out gallery images with the query's own id, also on the way.
        device: where to compute, the gallery's by default.

    Raises:
        ValueError: a setting out of range, an empty gallery, NaN in an embedding.
    """
    if min(k, degree) < 1 or threshold != threshold:
        raise ValueError(
            f"explore_exploit: k and degree must be at least 1 and threshold a number, got k={k}, "
            f"degree={degree}, threshold={threshold}."
        )
    nodes = nodes_of(queries, gallery, "explore_exploit", device)
    found = Neighbors(nodes.rows.new_empty(0, 0), nodes.vectors.new_empty(0, 0))
    if len(nodes.rows) and len(nodes.asked):
        plain = rank(nodes, lambda _, tile: tile, max(k, degree), exclude_self=exclude_self)
        walk = _walk(nodes, plain, k, degree, threshold, exclude_self)
        rest = plain.score - 3
        found = group(
            torch.cat([walk.index, plain.index.where(rest > -torch.inf, -1)], 1),
            torch.cat([walk.score, rest], 1),
            reduce="max",
        ).top(k)
    return answer(nodes, found, queries, gallery, k, last=-4.0, exclude_self=exclude_self)


egt = explore_exploit


def _walk(
    nodes: Nodes, plain: Neighbors, k: int, degree: int, threshold: float, exclude_self: bool
) -> Neighbors:
    """What the walks from all readable queries find, in order, `(q, k)`."""
    number = len(nodes.rows)
    index, score, _ = nearest(nodes.gallery, degree)
    # One table of sorted lists: the gallery's, then the queries'. Behind each an end that nobody
    # visits; short lists are filled with it.
    lists = torch.full((number + len(plain), degree + 1), number, device=index.device)
    edges = torch.full(lists.shape, -torch.inf, device=index.device)
    lists[:number, : index.shape[1]], edges[:number, : index.shape[1]] = index, score
    near = plain.top(degree)
    lists[number:, : near.index.shape[1]] = near.index
    edges[number:, : near.index.shape[1]] = near.score
    lists[edges == -torch.inf] = number
    gallery_code, code = nodes.codes
    block = max(1, min(512, _CELLS // (number + 1)))
    parts = []
    for start in range(0, len(plain), block):
        asked = torch.arange(start, min(start + block, len(plain)), device=index.device)
        visited = torch.zeros(len(asked), number + 1, dtype=torch.bool, device=index.device)
        if exclude_self:
            visited[:, :number] = code[asked, None] == gallery_code
        parts.append(_walk_block(lists, edges, number + asked, visited, k, threshold))
    return stack(parts, plain)


def _walk_block(
    lists: torch.Tensor,
    edges: torch.Tensor,
    start: torch.Tensor,
    visited: torch.Tensor,
    k: int,
    threshold: float,
) -> Neighbors:
    """`k` steps of walks that begin at the lists `start`, all queries in step.

    A heap would hold every neighbor of what is found. Lists are sorted, so the first unvisited
    entry of each found image's list, its head, is enough: the top is the best head.
    """
    rows = torch.arange(len(start), device=start.device)
    end = visited.shape[1] - 1
    source = torch.full((len(start), k + 1), end, device=start.device)  # whose list, by column
    source[:, 0] = start
    at = torch.zeros_like(source)
    open_lists = torch.ones_like(start)  # lists that were explored; later ones wait
    found = torch.full((len(start), k), -1, device=start.device)
    weight = torch.full((len(start), k), -torch.inf, device=start.device)
    for step in range(k):
        width = step + 1
        from_, place = source[:, :width], at[:, :width]
        head = lists[from_, place]
        while bool((seen := visited.gather(1, head)).any()):
            place += seen
            head = lists[from_, place]
        edge = edges[from_, place]
        waiting = torch.arange(width, device=start.device) >= open_lists[:, None]
        top = edge.masked_fill(waiting, -torch.inf).amax(1)
        # Nothing above the threshold is left to exploit: explore what was found since.
        open_lists = torch.where(top > threshold, open_lists, width)
        waiting &= ~(open_lists == width)[:, None]
        edge = edge.masked_fill(waiting, -torch.inf)
        top = edge.amax(1)
        image = head.masked_fill(edge != top[:, None], end).amin(1)  # ties by row
        alive = top > -torch.inf
        if not bool(alive.any()):
            break
        found[:, step] = image.where(alive, -1)
        weight[:, step] = top
        visited[rows[alive], image[alive]] = True
        source[:, width] = image.where(alive, start)
        at[:, width] = torch.where(alive, 0, lists.shape[1] - 1)
    lowest = weight.cummin(1).values - _STEP * torch.arange(k, device=start.device)
    return Neighbors(found, lowest)
