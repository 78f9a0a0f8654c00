"""Forecasts as lines of a table."""

from jax.sharding import Mesh

from miniplm_jax.plan import estimate
from miniplm_jax.plan.forecast import Forecast

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


def cells(name: str, mesh: Mesh, found: Forecast) -> list[str]:
  """The line of one program on slice `name`."""
  available = estimate.CHIPS[found.device_kind].hbm_gib
  collectives = ", ".join(
    f"{kind} {count}, {nbytes / 2**30:.2f}"
    for kind, (count, nbytes) in sorted(found.collectives.items())
  )
  return [
    name,
    ", ".join(str(n) for n in mesh.devices.shape),
    str(found.rows),
    f"{found.peak_bytes / 2**30:.2f} ({available:.2f})",
    f"{found.flops / 1e12:.2f} / {found.model_flops / 1e12:.2f} = "
    f"{found.flops / found.model_flops:.3f}",
    collectives or "none",
    f"{found.time.seconds * 1e3:.0f} ({found.time.collective * 1e3:.0f}; "
    f"{found.time.exposed * 1e3:.0f})",
    f"{found.tokens_per_second:,.0f}",
    f"{found.mfu:.2f}",
    str(found.logits),
    str(found.collectives.get("collective-permute", (0, 0))[0]),
  ]
