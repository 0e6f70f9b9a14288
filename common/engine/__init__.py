"""Training and extraction loops."""
