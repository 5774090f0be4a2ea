"""Model text → rationale and boxes, checked and counted."""
