"""Pieces of an artifact: all processes make each, one writes it."""

from collections.abc import Callable, Sequence

from miniplm_jax.core import distributed
from miniplm_jax.core.log import Progress


def fill(
  stage: str,
  sizes: Sequence[int],
  has: Callable[[int], bool],
  make: Callable[[int, Callable[..., None]], Callable[[], None]],
  every: float,
):
  """Makes the pieces that are not there: a step that was killed goes on.

  Args:
    sizes: rows of each piece.
    has: (i) → whether piece i is whole, and as it would be made now. The first
      process looks.
    make: (i, progress) → what writes piece i, which the first process calls;
      it calls `progress` with rows that are done, and perhaps a note.
  """
  missing = distributed.agree(
    lambda: [i for i in range(len(sizes)) if not has(i)]
  )
  total = sum(sizes)
  done = total - sum(sizes[i] for i in missing)
  with Progress(stage, total, "rows", done, every=every) as progress:
    for i in missing:
      distributed.agree(make(i, progress.update))
