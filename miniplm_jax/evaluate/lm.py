"""The former name of `evaluation.lm`, which registers the model."""

from miniplm_jax.evaluation.lm import MODEL, DirectoryLM  # noqa: F401
