"""Tests run on CPU, with rank promotion an error."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

from miniplm_jax.models import sharding

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def mesh():
  """The 1×1×1 mesh, in context."""
  found = sharding.make_mesh(1, 1, 1)
  with jax.set_mesh(found):
    yield found
