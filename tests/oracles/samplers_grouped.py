"""How often each category is drawn, and which clusters are one, step by step."""


def cells_per_category(groups, p, c):
    """Cells of p groups per category: enough for its groups, then one more for the smallest."""
    cells = [-(-n // p) for n in groups]
    batches = max(-(-sum(cells) // c), *cells)
    while sum(cells) < c * batches:
        cells[cells.index(min(cells))] += 1
    return cells


def merged(of, least):
    """Sets of clusters: small ones in order until they have `least` classes, the rest to the last
    such set, or to the smallest large cluster."""
    sizes = {cluster: of.count(cluster) for cluster in sorted(set(of))}
    sets, open_ = [], set()
    for cluster, size in sizes.items():
        if size < least:
            open_ = open_ | {cluster}
            if sum(sizes[x] for x in open_) >= least:
                sets, open_ = [*sets, open_], set()
    large = [{cluster} for cluster, size in sizes.items() if size >= least]
    if open_ and sets:
        sets[-1] |= open_
    elif open_:
        min(large, key=lambda one: (sizes[min(one)], min(one))).update(open_)
    return sets + large
