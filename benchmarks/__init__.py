"""The figures of the README, reproducible."""
