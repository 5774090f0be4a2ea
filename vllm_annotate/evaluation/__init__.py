"""How good boxes are: an output against truth, and two outputs against each other."""
