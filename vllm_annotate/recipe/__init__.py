"""What decides an answer: model family, prompts, schema, sampling and image budget."""
