"""What this project's flow is compared with: the same job done by smaller programs."""
