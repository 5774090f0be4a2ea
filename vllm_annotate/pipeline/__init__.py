"""One run: what it shares, and an image's way from its row to its line."""
