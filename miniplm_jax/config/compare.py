"""Section compare: criteria beside each other, each with several seeds."""

import dataclasses

from miniplm_jax.config.sections import SelectConfig
from miniplm_jax.core import fields as f
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import Section
from miniplm_jax.criteria import CRITERIA, canonical, criterion
from miniplm_jax.methods import MethodNames


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(Section):
  """Criteria × seeds over one corpus; see docs/selection.md."""

  name: str = f.name("")  # compare/<name>; "" is compare/ itself
  # Each a name of docs/selection.md or NAME=FORMULA; random is always among
  # them. () compares none.
  criteria: tuple[str, ...] = f.several(f.text(""))
  # of a student each: its weights, its order, and the rows that are drawn
  seeds: tuple[int, ...] = f.several(f.seed(10), 10, 11, 12)
  baseline: str = f.name("random")  # the criterion beside which others stand
  # That whose selection is the best there can be, if it is known: of its gain
  # over the baseline the others recover a share.
  oracle: str = f.name("")

  @property
  def definitions(self) -> dict[str, str]:
    """All criteria by name, as names of `CRITERIA` or formulas."""
    return dict(
      map(_named, ("random", *self.criteria) if self.criteria else ())
    )

  def select_of(
    self, select: SelectConfig, definition: str, seed: int
  ) -> SelectConfig:
    """How one criterion selects: random rows stay random, redundant or not."""
    is_random = criterion(definition).formula.text == "random()"
    redundancy = 0.0 if is_random else select.redundancy
    return select.replace(seed=seed, redundancy=redundancy)

  def selects_as(
    self, select: SelectConfig, definition: str, seed: int
  ) -> bool:
    """Whether a criterion selects of a seed what it does in the run itself."""
    own = self.select_of(select, definition, seed)
    idle = {} if select.is_drawn(definition) else {"seed": select.seed}
    return own.replace(**idle) == select

  def names(
    self, select: SelectConfig, student: str
  ) -> dict[str, dict[int, MethodNames]]:
    """What is made, by criterion and seed; students are named by a template."""

    def made(name: str, definition: str, seed: int) -> MethodNames:
      own = f"{name}-s{seed}"
      # Each seed draws rows of its own.
      rows = own if select.is_drawn(definition) else name
      return MethodNames(
        selection=select.name.replace("{method}", rows),
        student=student.replace("{method}", own),
        definition=canonical(definition),
        objective="next_token",
        generated=False,
      )

    return {
      name: {seed: made(name, definition, seed) for seed in self.seeds}
      for name, definition in self.definitions.items()
    }

  def _rules(self):
    for item in self.criteria:
      yield "criteria", *_judged(item), item
    names = [_named(item)[0].casefold() for item in self.criteria]
    is_added = "random" not in self.criteria
    good = f.differ([*names, *["random"] * is_added])
    yield "criteria", good, "give each another name, none random's"
    own = {f"{n}-s{seed}" for n in ["random", *names] for seed in self.seeds}
    hint = f"{', '.join(own.intersection(names))} is another's of a seed"
    yield "criteria", own.isdisjoint(names), f"{hint}: give another name"
    known = self.definitions or ("random",)
    hint = f"choose from {', '.join(known)}"
    yield "baseline", self.baseline in known, hint
    good = self.oracle in ("", *known) and self.oracle != self.baseline
    yield "oracle", good, f"{hint}, but the baseline"
    good = bool(self.seeds) and f.differ(self.seeds)
    yield "seeds", good, "give one or more, each once"


def _named(item: str) -> tuple[str, str]:
  """NAME=FORMULA as both; a name of `CRITERIA` means itself."""
  name, equals, formula = item.partition("=")
  return (name, formula) if equals else (item, item)


def _judged(item: str) -> tuple[bool, str]:
  """Whether a criterion can be meant, and what to give instead."""
  name, definition = _named(item)
  if item in CRITERIA:
    return True, ""
  if "=" not in item or not f.is_name(name):
    hint = f"give names of {', '.join(CRITERIA)}, and NAME=FORMULA"
    return False, f"{hint}: as a,b='x - y', without a space before a name"
  if name in CRITERIA:
    return False, f"{name} is {CRITERIA[name].text}: give another name"
  try:
    return bool(criterion(definition)), ""
  except UserError as e:
    return False, f"{e.what}; {e.hint}"
