"""What the bundled sample is made of: emoji as products, vendors as sellers, wording, scenes."""
