"""What the scripts of all competitions share: command lines, training, embeddings, ensembles."""
