"""The recipe: model family, prompts, schema, sampling and image budget."""
