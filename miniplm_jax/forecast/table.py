"""Figures of programs as lines of a table."""

from miniplm_jax.forecast.figures import Figures

HEADER = (
  "slice",
  "mesh (data, fsdp, tensor)",
  "rows a chip at a time",
  "peak GiB (of)",
  "TFLOPs compiled / of the model",
  "collectives: runs, GiB",
  "predicted ms (collectives; of these alone)",
  "predicted tokens/s a chip",
  "predicted MFU",
  "largest like logits",
  "collective-permutes",
)


def cells(found: Figures) -> list[str]:
  """The line of one program; of one that does not fit, what was said."""
  place = [found.slice, ", ".join(map(str, found.mesh)), str(found.rows)]
  if not found.fits:
    return [*place, found.refusal, *[""] * (len(HEADER) - 4)]
  collectives = ", ".join(
    f"{kind} {count}, {nbytes / 2**30:.2f}"
    for kind, (count, nbytes) in sorted(found.collectives.items())
  )
  return [
    *place,
    f"{found.peak_bytes / 2**30:.2f} ({found.hbm_bytes / 2**30:.2f})",
    f"{found.flops / 1e12:.2f} / {found.model_flops / 1e12:.2f} = "
    f"{found.flops / found.model_flops:.3f}",
    collectives or "none",
    f"{found.seconds * 1e3:.0f} ({found.collective * 1e3:.0f}; "
    f"{found.exposed * 1e3:.0f})",
    f"{found.tokens_per_second:,.0f}",
    f"{found.mfu:.2f}",
    found.logits,
    str(found.collectives.get("collective-permute", (0, 0))[0]),
  ]
