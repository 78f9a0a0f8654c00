"""What a model writes when it is given the beginning of a text."""
