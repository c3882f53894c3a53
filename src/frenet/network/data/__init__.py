"""Rows, texts and contrasts: from a file, the hub or built in, to tokens."""
