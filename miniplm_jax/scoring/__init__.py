"""Stage score: Σ nll and token count of every row of D, by model."""
