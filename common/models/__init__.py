"""From a batch of images to unit vectors."""
