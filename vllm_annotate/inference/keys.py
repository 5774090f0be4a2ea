"""The API key that is sent if none is set."""

NO_KEY = "none"  # the openai client insists on a key; a server without one ignores it
