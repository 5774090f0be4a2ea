"""Input files → rows, planned and cut into chunks."""
