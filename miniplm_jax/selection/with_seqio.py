"""seqio and TensorFlow, of which nothing else of the package has need."""

from miniplm_jax.core.errors import UserError

try:
  import seqio  # noqa: F401
  import tensorflow as tf  # noqa: F401
except ImportError as e:
  raise UserError(
    f"Tasks need seqio and TensorFlow ({e})",
    "miniplm_jax.selection.tasks",
    "pip install seqio 'sentencepiece<0.2.3' importlib-resources",
  ) from e
