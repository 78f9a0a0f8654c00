"""The former name of `selection`, for scripts that import it."""
