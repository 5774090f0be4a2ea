"""What stands for an API key where none is set."""

NO_KEY = "none"  # sent where there is no key: the client insists on one, and such a server ignores it
