"""Runs a job: from input rows to output lines and a report."""
