"""The proof: what a server sees of an image, and where its boxes point, shown with drawings before the first image."""
