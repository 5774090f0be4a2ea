"""The main job on scenes of coloured shapes whose boxes are known."""
