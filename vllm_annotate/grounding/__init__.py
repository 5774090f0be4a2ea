"""A model's text → rationale and boxes, checked and counted."""
