"""Two functions that must agree, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np


def assert_same_gradients(of, wanted, arrays, share: float):
  """Values and gradients, off by no more than a share of the largest.

  Args:
    of: of the first arrays.
    wanted: the same.
    arrays: the functions' arguments, and last the gradient of the result.
    share: of the largest wanted value of each.
  """

  def both(function):
    def gradients(*arrays):
      out, back = jax.vjp(function, *arrays[:-1])
      return out, *back(arrays[-1])

    return jax.jit(gradients)(*arrays)

  for found, right in zip(both(of), both(wanted), strict=True):
    top = float(jnp.abs(right).max())
    np.testing.assert_allclose(found, right, atol=share * top)
