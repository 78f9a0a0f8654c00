"""The former name of `evaluation`, for scripts that import it."""
