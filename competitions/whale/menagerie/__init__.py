"""How the bundled sample is drawn: individuals, their frames, and scenes around them."""
