"""The server: OpenAI's API over one engine, which follows an alias of the registry."""
