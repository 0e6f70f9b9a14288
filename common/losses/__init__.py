"""What the embeddings are trained with."""
