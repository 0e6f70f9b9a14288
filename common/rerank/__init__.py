"""From neighbors to better neighbors, and from neighbors to decisions."""
