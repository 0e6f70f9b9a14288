"""The scenes that `make_sample.py` composes the bundled sample from."""
