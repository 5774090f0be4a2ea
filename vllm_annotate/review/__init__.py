"""People correct the most doubtful answers in Label Studio."""
