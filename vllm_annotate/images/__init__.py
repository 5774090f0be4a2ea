"""Image files → upright JPEGs of the size that the model sees."""
