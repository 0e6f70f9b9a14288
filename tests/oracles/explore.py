"""Explore-exploit graph traversal with a heap, one query at a time (Chang et al., algorithm 1)."""

import heapq


def explore_exploit(queries, gallery, k, degree, threshold, hidden=None):
    """Gallery rows and the edges they were found by, `[[(row, edge), ...], ...]`, in order.

    `hidden` is one row per query that does not exist for it.
    """
    similarity = (gallery @ gallery.T).tolist()
    lists = [
        sorted(((-s, j) for j, s in enumerate(row) if j != i))[:degree]
        for i, row in enumerate(similarity)
    ]
    answers = []
    for q, row in enumerate((queries @ gallery.T).tolist()):
        banned = hidden[q] if hidden is not None else -1
        own = sorted((-s, j) for j, s in enumerate(row) if j != banned)[:degree]
        heap, found, fresh = [], {}, [own]
        while len(found) < k:
            for edges in fresh:  # explore
                for edge in edges:
                    heapq.heappush(heap, edge)
            fresh = []
            exploit = True
            while exploit and heap and len(found) < k:
                negative, image = heapq.heappop(heap)
                if image not in found and image != banned:
                    found[image] = -negative
                    fresh.append(lists[image])
                while heap and (heap[0][1] in found or heap[0][1] == banned):
                    heapq.heappop(heap)  # the peek must be at an image that is still to be found
                exploit = bool(heap) and -heap[0][0] > threshold
            if not heap and not fresh:
                break
        answers.append(list(found.items()))
    return answers
