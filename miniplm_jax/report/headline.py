"""What a run comes to, in words: who is ahead of whom, doubts, what to do next.

Losses are held out, in nats, means over rows of the mean per token.
"""

import dataclasses
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from miniplm_jax.core import fields
from miniplm_jax.core.groups import ALL
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.criteria import criterion
from miniplm_jax.evaluation import heldout
from miniplm_jax.report import findings
from miniplm_jax.report.by_domain import Difference, Paired
from miniplm_jax.report.inventory import Scored, Student
from miniplm_jax.report.selection_summary import Summary

_OF_D, _HELDOUT = 2000, 500  # rows in which ids are counted, and guessed
# Of the loss of that guess, above which a model knows no more than it.
_NEAR = 0.98
_MOST_SEEDS = 100  # that are worth to be named
_MOST = 3  # things to do next


@dataclasses.dataclass(frozen=True)
class Headline:
  """What stands at the top of a report."""

  verdict: Sequence[str]  # paragraphs
  doubts: Sequence[str] = ()
  next: Sequence[str] = ()  # what one would do now, the first thing first

  @classmethod
  def of(
    cls,
    students: Mapping[str, Student],
    scored: Mapping[str, Scored],
    corpus: Corpus,
    compared: Sequence[Mapping[str, Any]],
    summary: Summary,
    by_row: Paired | None,
  ) -> Self:
    """Of the students of a config, the main one first, on rows of `summary`.

    Models that score are by role; `compared` is what each compare.json says.
    """
    main = next(iter(students.values()))
    definition = main.selection.settings["definition"]
    over_seeds = [d for one in compared if (d := of_seeds(one, definition))]
    evaluations = {n: s.evaluation for n, s in students.items()}
    evaluations |= {n: s.evaluation for n, s in scored.items() if s.evaluation}
    loss = {
      n: heldout.losses(one)[ALL]["instance_mean"]
      for n, one in evaluations.items()
      if one.tokenizer == corpus.manifest.tokenizer
    }
    ignored = main.evaluation.settings.get("ignore_domains", ())
    doubted = [*doubts(loss, [*students], *guesses(corpus, ignored))]
    steps = main.training.counts["steps"]
    passes = main.per_step("rows") * steps / main.training.counts["rows"]
    longer = (
      f"Train longer; {steps:,} steps read what was kept {passes:.1f} times: "
      f"--config.train.steps={4 * steps} {_other('long', 'student')} (docs: "
      "Training)."
    )
    todo = [_REMEDIES.get(about, longer) for _, about in doubted]
    if one := (*over_seeds, by_row and by_row.difference)[0]:
      folder = f"students/{main.training.directory.name}"
      todo += _after(one, by_row, summary, folder, longer)
    elif len(students) == 1:
      todo.append(_NO_BASELINE)
    said, *others = verdict(students, over_seeds, by_row)
    return cls(
      ["With the doubts below: " * bool(doubted) + said, *others],
      [text for text, _ in doubted],
      [*dict.fromkeys(todo)][:_MOST],
    )

  def __str__(self) -> str:
    todo = [f"{i}. {text}" for i, text in enumerate(self.next, 1)]
    return "\n".join([*self.verdict, "", "What next:", *todo])


def of_seeds(figures: Mapping[str, Any], definition: str) -> Difference | None:
  """A criterion less the baseline, by compare.json; None if it is not there."""
  text = criterion(definition).text
  baseline = figures["baseline"]
  for name, one in figures["criteria"].items():
    if one["formula"] == text and name != baseline:
      gained = "."
      if "recovered" in one:
        ends = (one[f"recovered{end}"] for end in ("", "_low", "_high"))
        gained = ". That is {:.0%} ({:.0%} to {:.0%}) of what {} gains.".format(
          *ends, figures["oracle"]
        )
      at_random = figures["criteria"][baseline]["formula"] == "random()"
      place = f" in compare/{own}" if (own := figures.get("name")) else ""
      return Difference(
        *(name, baseline, one["delta"], one["delta_low"], one["delta_high"]),
        figures["heldout_rows"],
        by_seed=one["delta_by_seed"],
        at_random=at_random,
        over=f"{figures['seeds']} seeds of {figures['steps']:,} steps{place}",
        more=gained,
      )
  return None


def verdict(
  students: Mapping[str, Student],
  over_seeds: Sequence[Difference],
  by_row: Paired | None,
) -> Iterator[str]:
  """A paragraph for what several seeds say, and one for the students here."""
  yield from map(str, over_seeds)
  (main, first), *others = students.items()
  words = []
  if by_row:
    again = "The students of this config, one seed each: " * bool(over_seeds)
    words.append(f"{again}{by_row.sentence()}")
    others = [one for one in others if one[0] != by_row.difference.baseline]
  elif not others:
    loss = heldout.losses(first.evaluation)[ALL]["instance_mean"]
    words.append(f"{main}: held-out loss {loss:.4f}.")
  words += [stands(main, first, *other) for other in others]
  yield " ".join([*words, *findings.otherwise(students)])


def stands(main: str, first: Student, name: str, other: Student) -> str:
  """Where a student is whose difference has no interval, and by how long."""
  key, unit = "instance_mean", "nats"
  if other.evaluation.tokenizer != first.evaluation.tokenizer:
    key, unit = "bits_per_byte", "bits per byte"
  gap = [heldout.losses(s.evaluation)[ALL][key] for s in (other, first)]
  return (
    f"{name} is {Difference.way(gap[0] - gap[1], unit)} than {main} (one seed, "
    f"no interval), {findings.steps_in_words(main, first, other)}."
  )


def guesses(corpus: Corpus, ignored: Sequence[str] = ()) -> tuple[float, float]:
  """Held-out loss of a uniform guess, and of ids as often as they are in D.

  Of evenly spaced rows. An id that D does not have gets what Witten and Bell
  (1991) leave for it: p(id) = (count + types / ids) / (tokens + types).
  """
  rows = corpus.rows_of("train")
  rows = corpus.read(rows[:: fields.stride(len(rows), _OF_D)])
  count = np.bincount(np.concatenate([row.ids for row in rows]))
  count = np.pad(count, (0, corpus.ids - len(count)))
  types = np.count_nonzero(count)
  nll = np.log(count.sum() + types) - np.log(count + types / corpus.ids)
  guessed = corpus.read(corpus.heldout_rows(_HELDOUT, ignored))
  by_row = [nll[row.ids[1:]].mean() for row in guessed if len(row.ids) > 1]
  return math.log(corpus.ids), float(np.mean(by_row))


def doubts(
  loss: Mapping[str, float],
  students: Sequence[str],
  uniform: float,
  unigram: float,
) -> Iterator[tuple[str, str]]:
  """Yields why figures may mean little, and of what, "students" or a role.

  Args:
    loss: of students and of models that score, by name.
    uniform: loss of a uniform guess; `unigram`, of one by frequency.
  """
  blind = [name for name, nats in loss.items() if nats > _NEAR * unigram]
  groups = {r: [r] for r in ("teacher", "reference") if r not in students}
  for about, names in (groups | {"students": students}).items():
    if own := [f"{name} ({loss[name]:.4f})" for name in names if name in blind]:
      little = "The scores" if about in groups else "Differences between them"
      text = (
        f"{', '.join(own)}: held-out loss no lower than by guessing ids as "
        f"often as they occur in D, {unigram:.4f} (a uniform guess: "
        f"{uniform:.4f}). {little} mean little."
      )
      yield text, about
  of = lambda name: loss.get(name, math.inf)  # noqa: E731
  teacher = loss.get("teacher", 0.0) if "teacher" in groups else 0.0
  for other in ("reference", min(students, key=of)):
    if teacher > of(other):
      text = (
        f"The teacher ({teacher:.4f}) is worse than {other} ({of(other):.4f}): "
        "its scores do not say what is worth learning."
      )
      yield text, "teacher"


def _other(end: str, *sections: str) -> str:
  """Flags that name what is made of another setting, beside what is there."""
  names = [f"--config.{s}.name='{{method}}-{end}'" for s in sections]
  return " ".join([*names, f"--config.compare.name={end}"])


def _of(field: str, domain: str, more: str = "") -> str:
  """A flag that gives a field one item, for a shell."""
  is_plain = re.fullmatch(r"[\w.-]+", domain)
  item = domain + more if is_plain else repr((domain + more,))
  return shlex.quote(f"--config.{field}={item}")


_REMEDIES = {
  "teacher": "Take a better teacher, or train it longer: teacher.path, "
  "teacher.train.steps (docs: Your own teacher).",
  "reference": "Train the reference longer, or on more, in another workdir: "
  "reference.train.steps, corpus.reference_share (docs: Your own teacher).",
}
_NO_BASELINE = (
  "Train what to compare with: --config.baselines=pretrain (docs: Choose a "
  "criterion)."
)


def _after(
  difference: Difference,
  by_row: Paired | None,
  summary: Summary,
  folder: str,
  longer: str,
) -> Iterator[str]:
  """What to do after a difference, in the order of what it changes."""
  if len(difference.by_seed) < 2:
    yield (
      "Ask more seeds, of which one says little: miniplm compare (docs: Choose "
      "a criterion)."
    )
  if difference.shown < 0:
    yield f"Use the student: {folder}/hf (docs: Use the student)."
    yield (
      "See whether it holds when training is longer, or the student larger: "
      "train.steps, student.model (docs: Training)."
    )
  elif difference.shown > 0:
    yield _of_domain(by_row, summary)
  else:
    yield more(difference)
    yield longer


def _of_domain(by_row: Paired | None, summary: Summary) -> str:
  """Where to look when rows at random are better."""
  is_seen = by_row and by_row.difference.mean > 0
  domain, share = by_row.decides[0] if is_seen else "", summary.total.share
  group = {g.name: g for g in summary.domains}.get(domain)
  if len(summary.domains) > 1 and group and group.share < share:
    keep = f"={group.rows / summary.total.rows:.2f}:"
    return (
      f"Keep more of {domain}, which decides: {group.share:.1%} of it is kept "
      f"and {share:.1%} of all. Its share of D: "
      f"{_of('select.quotas', domain, keep)} "
      f"{_other('quotas', 'select', 'student')} (docs: Data). Or is it nothing "
      "that the student is for? Then let it not count, in miniplm run: "
      f"{_of('evaluate.ignore_domains', domain)} (docs: Your own corpus)."
    )
  return (
    "Look at the highest and lowest rows below, under Texts, then rank "
    "otherwise: select.definition (docs: Choose a criterion)."
  )


def more(difference: Difference) -> str:
  """How many seeds or rows show a difference as small as the one found.

  Half an interval is t · s / √n of n seeds, and goes as 1 / √n of n rows; what
  makes the most of it is named.
  """
  from scipy import stats

  def reach(n: int) -> float:
    spread = np.std(difference.by_seed, ddof=1)
    return float(stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n))

  half, size = (difference.high - difference.low) / 2, abs(difference.mean)
  seeds = len(difference.by_seed)
  as_small = f"would show a difference as small as {size:.4f}"
  if size and (seeds < 2 or reach(seeds) < half / math.sqrt(2)):
    return (
      "Measure on more held-out rows: some "
      f"{math.ceil(difference.rows * (half / size) ** 2):,} and not "
      f"{difference.rows:,} {as_small} (half an interval goes as 1 / √rows): "
      "corpus.heldout_share in a new workdir (docs: Your own corpus)."
    )
  for n in range(seeds + 1, _MOST_SEEDS + 1) if size else ():
    if reach(n) < size:
      return (
        f"Ask more seeds: {n} and not {seeds} {as_small} (half an interval "
        "goes as 1 / √seeds): compare.seeds (docs: Choose a criterion)."
      )
  return (
    f"Take it for none: not even {_MOST_SEEDS} seeds {as_small} (docs: Choose "
    "a criterion)."
  )
