"""Stage proxy: a small model learns the score on a sample of D."""
