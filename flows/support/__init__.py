"""What only a Prefect process needs."""
