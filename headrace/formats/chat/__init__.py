"""OpenAI's chat completions: the hub between all formats."""
