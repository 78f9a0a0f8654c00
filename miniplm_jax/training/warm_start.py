"""A student that goes on from the weights of a given model."""

from etils import epy

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.ref import ModelRef

with epy.lazy_imports():
  import jax

  from miniplm_jax.corpus import trained_rows
  from miniplm_jax.models import decoder, huggingface


def load(begin: ModelRef, shape: Architecture, corpus, base, mesh):
  """A `Decoder` of a student's shape, in float32, each device with its shard.

  `base` is the corpus, or what that was generated from, with the rows' seed.

  Raises:
    UserError: it has another shape or tokenizer, was trained on held-out
      rows, or cannot be read.
  """
  theirs, ours = _shape(begin.shape()), _shape(shape)
  differing = [
    f"{name} {theirs.get(name)} and not {ours.get(name)}"
    for name in theirs | ours
    if theirs.get(name) != ours.get(name)
  ]
  if differing:
    raise UserError(
      f"the model to begin with has {', '.join(differing)}",
      f"config.student.init={begin.path} and config.student.model",
      "give config.student.model that model's shape",
    )
  heldout = base.rows_of("heldout"), begin.name, "held-out rows"
  folder = begin.folder()
  trained_rows.refuse(folder, base, *heldout)
  model = begin.load(corpus, mesh, "float32")
  weights = huggingface.weights_fingerprint(model)
  log("train", f"begins with {begin.path or folder}, weights {weights[:12]}")
  tree = jax.tree.structure(decoder.abstract(shape, "float32"))
  return jax.tree.unflatten(tree, jax.tree.leaves(model))


def _shape(shape: Architecture) -> dict[str, object]:
  """What must be equal of two shapes, by name."""
  fields = {"family": shape.family} | shape.facts
  if "head_dim" in fields:
    fields["head_dim"] = shape.head_size
  return fields
