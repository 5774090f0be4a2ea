"""Input files → rows → plan → chunks."""
