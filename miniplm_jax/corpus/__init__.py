"""Stage tokenize: text to packed rows of tokens, by domain."""
