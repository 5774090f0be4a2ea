"""Image files → what is sent of them, and the size that the model sees."""
