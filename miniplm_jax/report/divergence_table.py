"""How far students are from the teacher, by what each writes, as a table."""

from collections.abc import Mapping

from miniplm_jax.evaluation.divergence import Divergence, Estimate
from miniplm_jax.report.page import Section
from miniplm_jax.report.table import Table


def in_words(one: Estimate | None) -> str | None:
  """A figure with its interval."""
  return one and "{:.4f} ({:.4f} to {:.4f})".format(*one)


def section(by_method: Mapping[str, Divergence]) -> Section:
  """A row for each method, the lowest reverse KL first."""
  ordered = sorted(by_method, key=lambda m: by_method[m].reverse_kl.value)
  any_of = next(iter(by_method.values()))
  is_exact = any_of.reverse_kl_per_token is not None
  columns = [
    ("method", "", str),
    *(
      (title, ">", lambda m, name=name: in_words(getattr(by_method[m], name)))
      for title, name in (
        ("reverse KL, bits per byte", "reverse_kl"),
        ("nats per token", "reverse_kl_per_token"),
        ("forward KL, bits per byte", "forward_kl"),
        ("loss on the teacher's texts, bits per byte", "forward_nll"),
      )
      if is_exact or name != "reverse_kl_per_token"
    ),
    ("texts that it ended", ".0%", lambda m: by_method[m].ended),
  ]
  spelled = "; ".join(f"{m} {by_method[m].not_canonical:.0%}" for m in ordered)
  note = (
    "Scored by the ids that were drawn."
    if is_exact
    else "Tokenizers differ: both models read the texts, each by its own ids. "
    f"Samples that were drawn by other ids than a student reads: {spelled}."
  )
  return Section(
    "Divergence from the teacher",
    [
      "Reverse KL, which MiniPLM is derived to minimize: the mean of log q − "
      "log p of what the student q writes; forward: of log p − log q of what "
      "the teacher p writes. Both go on from first words of held-out rows at "
      f"temperature 1; {any_of.samples:,} samples of each. In brackets "
      "intervals of 95 %, over samples and not over seeds."
    ],
    table=Table.of(ordered, *columns),
    notes=[note],
  )
