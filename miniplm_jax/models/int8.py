"""int8 weights, for a model that only scores.

The layers' matrices are held, and sent between devices, in half the bytes of
bfloat16. The layer scan turns one layer at a time into the compute dtype.
All else stays as it is: rounding the embedding or the head would save little
of a large model.

L layers, D inputs and E outputs of a matrix.
"""

from typing import Any

import jax
import jax.numpy as jnp
import qwix

from miniplm_jax.models import sharding

# A matrix that is not rounded: Mamba's, 2 % of a layer; e is raised to what it
# makes.
_NOT_ROUNDED = "dt_proj"


def quantize(model: Any) -> Any:
  """Rounds a decoder's matrices to int8.

  Each layer and output has a scale, its greatest magnitude over 127.5.

  The model, a `Decoder` on a mesh, is used up: each matrix is deleted once it
  is rounded, so that no device holds two models.

  Returns:
    A `Decoder` that scores and generates. In place of a matrix stands a
    `qwix.QArray`: int8 [L, D, E], split like the matrix, and float32
    [L, 1, E].
  """

  def one(w_LxDxE, where):
    rounded = jax.jit(_rounded, out_shardings=where)(w_LxDxE)
    w_LxDxE.delete()
    return rounded

  mesh = model.embed[...].sharding.mesh
  return _each_matrix(one, model, sharding.shardings(abstract(model), mesh))


def abstract(model: Any) -> Any:
  """The ShapeDtypeStructs of what `quantize` makes of a decoder."""
  return jax.eval_shape(lambda m: _each_matrix(_rounded, m), model)


def _each_matrix(f, model, *others):
  def one(path, leaf, *rest):
    name = sharding.name_of(path)
    is_rounded = name.endswith("_proj") and name != _NOT_ROUNDED
    return f(leaf, *rest) if is_rounded else leaf

  return jax.tree_util.tree_map_with_path(one, model, *others)


def _rounded(w_LxDxE) -> qwix.QArray:
  # qwix would divide in bfloat16 otherwise.
  wide_LxDxE = w_LxDxE.astype(jnp.float32)
  return qwix.quantize(wide_LxDxE, jnp.int8, channelwise_axes=(0, 2))


def is_quantized(leaf: Any) -> bool:
  """Whether this is an int8 matrix: a leaf, though JAX sees a pytree."""
  return isinstance(leaf, qwix.QArray)


def dequantized(layer: Any) -> Any:
  """A layer of arrays alone, int8 matrices in the dtype of their scales."""
  return jax.tree.map(
    lambda w: qwix.dequantize(w) if is_quantized(w) else w,
    layer,
    is_leaf=is_quantized,
  )
