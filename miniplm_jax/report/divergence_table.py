"""How far students are from the teacher, by what each writes, as a table."""

from collections.abc import Mapping

from miniplm_jax.evaluation.divergence import Divergence
from miniplm_jax.report.page import Section
from miniplm_jax.report.table import Table

_COLUMNS = {
  "reverse_kl": "reverse KL, bits per byte",
  "reverse_kl_per_token": "nats per token",
  "forward_kl": "forward KL, bits per byte",
  "forward_nll": "loss on the teacher's texts",
}


def section(of: Mapping[str, Divergence]) -> Section:
  """A row for each method, the lowest reverse KL first."""

  def column(name: str):
    def shown(method: str) -> str | None:
      one = getattr(of[method], name)
      return one and "{:.4f} ({:.4f} to {:.4f})".format(*one)

    return _COLUMNS[name], ">", shown

  samples = max(each.samples for each in of.values())
  return Section(
    "Divergence from the teacher",
    [
      "Reverse KL, which MiniPLM is derived to minimize: the mean of log q − "
      "log p over what the student q writes; forward: of log p − log q over "
      "what the teacher p writes, as is the student's loss, in bits per byte. "
      f"{samples:,} samples of each, which go on from first words of held-out "
      "rows. In brackets intervals of 95 %, over samples and not over seeds. "
      "Per token only where ids mean the same to both; if not, both read the "
      "texts, each by its own ids: see docs/evaluation.md."
    ],
    table=Table.of(
      sorted(of, key=lambda method: of[method].reverse_kl),
      ("method", "", str),
      *map(column, _COLUMNS),
      ("ended", ".0%", lambda method: of[method].ended),
      ("by other ids", ".0%", lambda method: of[method].not_canonical),
    ),
  )
