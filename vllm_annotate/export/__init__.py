"""An output → the files that trainers and tools for labelling read."""
