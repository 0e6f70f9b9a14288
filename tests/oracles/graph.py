"""Graphs of neighbors, one pair at a time, on Python sets; bridges by networkx."""

import networkx as nx


def edges(index, score, threshold, mutual):
    """{(a, b): weight} with a < b."""
    lists = [
        {j: s for j, s in zip(row, scores, strict=True) if j >= 0 and j != i and s >= threshold}
        for i, (row, scores) in enumerate(zip(index, score, strict=True))
    ]
    out = {}
    for i, row in enumerate(lists):
        for j, s in row.items():
            back = lists[j].get(i)
            if back is not None:
                out[min(i, j), max(i, j)] = (s + back) / 2
            elif not mutual:
                out[min(i, j), max(i, j)] = s
    return out


def parts(n, pairs):
    """Part of each node, numbered by its first node."""
    label = list(range(n))
    for _ in range(n):
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    order = {name: number for number, name in enumerate(dict.fromkeys(label))}
    return [order[name] for name in label]


def cut(n, weights, larger, betweenness, below):
    """The edges left by cutting the highest betweenness of every group that is too large."""
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_weighted_edges_from((a, b, w) for (a, b), w in weights.items())
    done = False
    while not done:
        done = True
        for nodes in list(nx.connected_components(graph)):
            if len(nodes) <= larger:
                continue
            part = graph.subgraph(nodes)
            share = nx.edge_betweenness_centrality(part)
            open_ = {
                (min(e), max(e)): value
                for e, value in share.items()
                if value > betweenness and (below is None or part.edges[e]["weight"] < below)
            }
            if open_:
                top = max(open_.values())
                tied = [e for e, value in open_.items() if value >= top * (1 - 1e-9)]
                graph.remove_edge(*min(tied, key=lambda e: (weights[e], e)))
                done = False
    return {(min(e), max(e)) for e in graph.edges}


def agglomerate(n, weights, missing, stop):
    """Clusters as frozensets; merges go on while `stop(similarity, clusters)` is false."""

    def alike(one, other):
        pairs = [(min(a, b), max(a, b)) for a in one for b in other]
        return sum(weights.get(pair, missing) for pair in pairs) / len(pairs)

    def joined(one, other):
        return component[min(one)] == component[min(other)]

    component = parts(n, weights)
    clusters = [frozenset([i]) for i in range(n)]
    while True:
        options = [
            (alike(x, y), x, y)
            for i, x in enumerate(clusters)
            for y in clusters[i + 1 :]
            if joined(x, y)
        ]
        if not options:
            return set(clusters)
        best, x, y = max(options, key=lambda option: option[0])
        if stop(best, len(clusters)):
            return set(clusters)
        clusters = [c for c in clusters if c not in (x, y)] + [x | y]


def members(groups, index, score, most):
    out = []
    for row, group in enumerate(groups):
        scores = dict(zip(index[row], score[row], strict=True))
        rest = [j for j, other in enumerate(groups) if other == group and j != row]
        rest.sort(key=lambda j: (j not in scores, -scores.get(j, 0), j))
        out.append([row, *rest][:most])
    return out


def fitted(score, counts):
    """Kept numbers of neighbors per row; `counts[s]` rows keep at least s + 1."""
    kept = [0] * len(score)
    for place, count in enumerate(counts):
        able = [
            row
            for row in range(len(score))
            if kept[row] == place and score[row][place] > float("-inf")
        ]
        for row in sorted(able, key=lambda row: (-score[row][place], row))[:count]:
            kept[row] += 1
    return kept
