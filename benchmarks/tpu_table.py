"""Predictions for TPU slices as rows of a table."""

import importlib.metadata

from miniplm_jax.forecast.prediction import Prediction

HEADER = (
  "slice",
  "mesh (data, fsdp, tensor)",
  "rows a chip at a time",
  "peak GiB (of)",
  "TFLOPs compiled / of the model",
  "collectives: runs, GiB",
  "predicted ms (optimistic to pessimistic)",
  "of it waiting for collectives (all of them)",
  "predicted tokens/s a chip",
  "predicted MFU",
  "largest like logits",
  "collective-permutes",
)


def cells(run: Prediction) -> list[str]:
  """Makes the row of one run; if it does not fit, with what was said."""
  place = [run.slice, ", ".join(map(str, run.mesh)), str(run.rows)]
  if not run.fits:
    return [*place, run.refusal, *[""] * (len(HEADER) - 4)]
  collectives = ", ".join(
    f"{kind} {count}, {nbytes / 2**30:.2f}"
    for kind, (count, nbytes) in sorted(run.collectives.items())
  )
  return [
    *place,
    f"{run.peak_bytes / 2**30:.2f} ({run.hbm_bytes / 2**30:.2f})",
    f"{run.flops / 1e12:.2f} / {run.model_flops / 1e12:.2f} = "
    f"{run.flops / run.model_flops:.3f}",
    collectives or "none",
    f"{run.seconds * 1e3:.0f} ({run.optimistic * 1e3:.0f} to "
    f"{run.pessimistic * 1e3:.0f})",
    f"{run.exposed * 1e3:.0f} ({run.collective * 1e3:.0f})",
    f"{run.tokens_per_second:,.0f}",
    f"{run.mfu:.2f}",
    run.logits,
    str(run.collectives.get("collective-permute", (0, 0))[0]),
  ]


def versions() -> str:
  """What compiled; a libtpu.so by its path alone does not say its version."""
  found = [f"jax {importlib.metadata.version('jax')}"]
  try:
    found.append(f"libtpu {importlib.metadata.version('libtpu')}")
  except importlib.metadata.PackageNotFoundError:
    found.append("the libtpu of TPU_LIBRARY_PATH")
  return ", ".join(found)
