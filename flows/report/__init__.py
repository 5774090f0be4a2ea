"""A run → report.json, report.html and the artifacts in the Prefect UI."""
