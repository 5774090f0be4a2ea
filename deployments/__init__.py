"""How the flows are deployed: prefect.yaml, and what a Prefect server needs beside it."""
