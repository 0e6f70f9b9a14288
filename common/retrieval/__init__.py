"""From embeddings to neighbors: search, indexes, expansion, transforms."""
