"""Models, adapters and GGUF files: what they hold, and how they are read."""
