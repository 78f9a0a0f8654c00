"""The criteria: what a row is worth, as formulas over score tables.

formula.py reads and evaluates them, nodes.py has their parts and functions,
statistics.py what must be known of all rows. `CRITERIA` has those with names;
select.definition in the config is one, or any formula.
"""

import dataclasses
import functools

from miniplm_jax.criteria.formula import Formula, parse


@dataclasses.dataclass(frozen=True)
class Criterion:
  """A way to rank rows: the highest are kept."""

  text: str  # the formula
  label: str  # of the score, with its unit
  in_words: str = ""  # for the card of a selection

  @functools.cached_property
  def formula(self) -> Formula:
    """The formula, parsed."""
    return parse(self.text)

  @property
  def reads(self) -> tuple[str, ...]:
    """Whose score tables it reads."""
    return self.formula.tables


_MEANS = (
  "p the teacher, p_ref the reference, n the scored tokens of row x"  # each
)
CRITERIA = {
  # as the released code
  "mean_diff": Criterion(
    "reference - teacher",
    "log p − log p_ref, nats per token",
    f"r(x) = (log p(x) − log p_ref(x)) / n, {_MEANS}",
  ),
  # as the paper writes it
  "sum_diff": Criterion(
    "reference.sum - teacher.sum",
    "log p − log p_ref, nats per row",
    "r(x) = log p(x) − log p_ref(x), p the teacher, p_ref the reference, "
    "summed over row x",
  ),
  # No token counts more than what it says.
  "bits_per_byte_diff": Criterion(
    "(reference.sum - teacher.sum) / (log(2) * bytes)",
    "log p − log p_ref, bits per byte",
    "r(x) = (log2 p(x) − log2 p_ref(x)) / b, p the teacher, p_ref the "
    "reference, b the UTF-8 bytes of the scored text of row x",
  ),
  "zscore_by_domain": Criterion(
    "z(reference - teacher, by=domain)",
    "log p − log p_ref per token, standard deviations from the domain's mean",
    f"r(x) = (d(x) − m) / s, d(x) = (log p(x) − log p_ref(x)) / n, {_MEANS}, m "
    "and s mean and standard deviation of d over the rows of x's domain",
  ),
  # what the reference finds hard
  "difficulty": Criterion(
    "reference",
    "−log p_ref, nats per token",
    "r(x) = −log p_ref(x) / n, p_ref the reference, n the scored tokens of "
    "row x",
  ),
  # what the teacher finds easy
  "teacher_preference": Criterion(
    "-teacher",
    "log p, nats per token",
    "r(x) = log p(x) / n, p the teacher, n the scored tokens of row x",
  ),
  "proxy": Criterion("proxy", "predicted log p − log p_ref, nats per token"),
  # the conditional: the reference, trained on target text
  "color_filter": Criterion(
    "reference - conditional",
    "log p_target − log p_ref, nats per token",
    "r(x) = (log p_target(x) − log p_ref(x)) / n, p_ref the reference, "
    "p_target the same trained on target text, n the scored tokens of row x",
  ),
  "random": Criterion("random()", "a random number in [0, 1)"),
}


@functools.cache
def criterion(definition: str) -> Criterion:
  """The criterion of a name of `CRITERIA`, or of a formula.

  Raises:
    UserError: it is neither.
  """
  if known := CRITERIA.get(definition):
    return known
  text = parse(definition).text
  return Criterion(
    text,
    text,
    f"r(x) = {text}, names being the mean NLL of "
    "row x by that model, in nats per token",
  )


def canonical(definition: str) -> str:
  """The definition in the layout that all who mean the same share."""
  return definition if definition in CRITERIA else parse(definition).text
