"""Files: paths and URLs, atomic replacement, locks and leases, lenient JSON."""
