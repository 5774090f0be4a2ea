"""Deploys the flows: prefect.yaml, and the setup of a Prefect server."""
