"""From embeddings to neighbors: search, expansion, whitening."""
