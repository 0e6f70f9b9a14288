"""Images and tables: decode, augment, sample, split, de-duplicate."""
