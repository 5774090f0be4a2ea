"""The annotation workflow: one module a stage, in the order an image meets them."""
