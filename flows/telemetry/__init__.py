"""What the run's GPUs, servers and its own side did, second by second, and what held it back."""
