"""Near duplicates by comparing every pair, groups by walking along them."""


def near_duplicates(hashes, distance):
    """All (i, j), i < j, whose hashes differ in at most `distance` bits."""
    values = [int(value) for value in hashes]
    return [
        (i, j)
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if bin(values[i] ^ values[j]).count("1") <= distance
    ]


def duplicate_groups(hashes, distance):
    """The smallest row that can be reached from each row."""
    group = list(range(len(hashes)))
    pairs = near_duplicates(hashes, distance)
    changed = True
    while changed:
        changed = False
        for i, j in pairs:
            low = min(group[i], group[j])
            changed |= group[i] != low or group[j] != low
            group[i] = group[j] = low
    return group
