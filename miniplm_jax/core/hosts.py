"""Several processes as one program: who speaks, and agreeing on a decision.

Every process of a pod runs the same stages. The first one looks at the
workdir, decides and writes; the others follow.
"""

import json
from collections.abc import Callable
from typing import Any

from miniplm_jax.core.errors import UserError

# Longest decision that `agree` passes on, in bytes.
_BYTES = 1 << 16
_index, _count = 0, 1


def initialize(coordinator: str, processes: int, process_id: int):
  """Joins the other processes, before anything touches JAX.

  Args:
    coordinator: HOST:PORT of the first process; "auto" lets JAX find out on
      a TPU pod; "" is a process alone.
    processes: how many.
    process_id: which this is.

  Raises:
    UserError: they did not come together.
  """
  global _index, _count
  if not coordinator:
    return
  import jax

  # The CPU backend has no collectives across processes unless told so.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    if coordinator == "auto":
      jax.distributed.initialize()
    else:
      jax.distributed.initialize(coordinator, processes, process_id)
  except (RuntimeError, ValueError) as e:
    raise UserError(
      f"the processes did not come together ({e})",
      f"config.run.coordinator={coordinator}",
      "start all of them, with the same coordinator and number",
    ) from e
  _index, _count = jax.process_index(), jax.process_count()


def is_first() -> bool:
  """Whether this process decides, writes and speaks."""
  return _index == 0


def agree(decide: Callable[[], Any]) -> Any:
  """What the first process decides, in all of them.

  Args:
    decide: called in the first process only; returns a JSON value.

  Raises:
    UserError: in all processes, if `decide` raised one, or an OSError, in
      the first.
  """
  if _count == 1:
    return decide()
  import numpy as np
  from jax.experimental import multihost_utils

  told = np.zeros(_BYTES, np.uint8)
  if is_first():
    try:
      found = {"value": decide()}
    except UserError as e:
      found = {"error": [e.what, e.where, e.todo]}
    except OSError as e:
      found = {"error": [str(e), "in the first process", "look at its log"]}
    text = np.frombuffer(json.dumps(found).encode(), np.uint8)
    told[: len(text)] = text
  told = np.asarray(multihost_utils.broadcast_one_to_all(told))
  found = json.loads(told.tobytes().rstrip(b"\0"))
  if "error" in found:
    raise UserError(*found["error"])
  return found["value"]
