"""The demo: annotates scenes of coloured shapes whose boxes are known."""
