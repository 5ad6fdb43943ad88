"""HTTP: OpenAI-compatible routes over any Chat, and the chat page."""
