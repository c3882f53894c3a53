"""What is read from a model and added to it while it runs."""
