"""What `--dry_run` prints: what would be done, what it takes, what is odd.

Nothing is made, fetched or measured for it, and nothing slow imported.
"""

import collections
import itertools
import math
import re
from collections.abc import Iterator, Sequence

from etils import epath

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.decide import Action, Decision, decide
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import duration, short
from miniplm_jax.core.manifest import Manifest, MissingError
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus.summary import FEW
from miniplm_jax.models import hub
from miniplm_jax.models.ref import REFERENCE, ROLES
from miniplm_jax.stages import Stages
from miniplm_jax.trainings import Trainings

_SEED = re.compile(r"-s(\d+)\b")  # in names that stage compare gives


class DryRun:
  """Prints what would be done of each stage, in the order of the stages."""

  def __init__(self):
    """Nothing was said yet."""
    self.error: UserError | None = None  # the first that a step is refused for
    self.doubts: list[str] = []
    self._refusals: set[str] = set()  # in words
    self._is_new: set[epath.Path] = set()  # manifests that would be written
    # By manifest of what was said, whether it would be there then.
    self._is_there: dict[epath.Path, bool] = {}

  def say(self, stage: str, steps: Sequence[Step], force: bool):
    """Prints a stage's steps; those that differ in a name alone together."""
    alike: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
      if step.manifest not in self._is_there:
        words = self._decided(step, force)
        alike.setdefault((words, step.summary), []).append(step)
    for (words, summary), group in alike.items():
      many = f"{len(group)} × " * (len(group) > 1)
      subjects = _joined([s.subject for s in group if s.subject])
      text = f"{many}{summary} {subjects}".strip()
      if words in self._refusals:
        words = "would be refused likewise"
      elif words.startswith(Action.REFUSE.value.format("")):
        self._refusals.add(words)  # the reason may be long
      gap = f"\n{'':14}" if ": " in words else ": "
      print(f"  {stage:11} {words}{gap}{text}")

  def _decided(self, step: Step, force: bool) -> str:
    """What would be done of it, in words."""
    decision = decide(step, force)
    if decision.action in (Action.RUN, Action.WAIT):  # nothing is there yet
      try:
        for source in step.named_inputs.values():
          self.doubts += source.check() if hasattr(source, "check") else []
      except UserError as e:
        decision = Decision(Action.REFUSE, str(e), error=e)
    is_there = decision.action not in (Action.REFUSE, Action.WAIT)
    words = str(decision)
    is_done, paths = decision.action is Action.SKIP, step.input_manifests
    if is_done and step.policy.is_view:  # and shows what would be new by then
      is_done = self._is_new.isdisjoint(paths.values())
      words = words if is_done else Action.REMAKE.value
    if is_there and not is_done:
      self._is_new.add(step.manifest)
    if decision.action is Action.REFUSE:
      self.error = self.error or decision.error
    if decision.action is Action.WAIT:
      missing = decision.error.paths
      others = {k: p for k, p in missing.items() if p not in self._is_there}
      is_there = all(map(self._is_there.get, missing.values()))
      words = Action.RUN.value if is_there else "would wait"  # for what is said
      if others:  # which no stage that is asked for makes
        words = Action.WAIT.value.format(MissingError(others).in_words)
    self._is_there[step.manifest] = is_there
    return words


def _joined(names: Sequence[str]) -> str:
  """The names; of a-s1, a-s2, b-s1 and b-s2 "a, b × seeds 1, 2"."""
  of, alike = collections.defaultdict(list), collections.defaultdict(list)
  for name in names:
    of[_SEED.sub("", name, 1)].append(name)
  for stem, same in of.items():
    seeds = ", ".join(s for n in same for s in _SEED.findall(n)[:1] if same[1:])
    alike[seeds] += [stem] if seeds else same
  return "; ".join(
    ", ".join(each) + f" × seeds {seeds}" * bool(seeds)
    for seeds, each in alike.items()
  )


def doubts(of: Trainings) -> Iterator[str]:
  """Yields what of the config most would not want, by what is there now."""
  c, student = of.config, of.config.student
  given = hub.GivenTokenizer(c.corpus.tokenizer, "")
  ids = hub.token_ids(given.directory) if given.is_folder else 0
  ids = ids or c.corpus.vocab_size
  held = FEW if c.corpus.heldout_share or c.corpus.split_field else 0
  if corpus := manifest_lib.read(of.corpus):
    ids = corpus.details.get("highest_id", ids - 1) + 1
    held = corpus.counts.get("split heldout", 0)
  specs = {role: of.scorer(role) for role in ROLES}
  shapes = {role: spec.shape for role, spec in specs.items() if spec}
  shapes |= {} if student.tokenizer else {"student": student.model}
  for name, shape in shapes.items():
    if shape.vocab_size < ids:
      what = f"{name}.model.vocab_size={shape.vocab_size} is too small"
      yield f"{what}: the tokenizer has {ids} ids"
  most = getattr(student.model, "max_position_embeddings", math.inf)
  if most < c.corpus.max_length:
    what = f"student.model.max_position_embeddings={most}, as its export says"
    yield f"{what}, and corpus.max_length={c.corpus.max_length}"
  if c.run.eval_every > c.train.steps:
    what = f"run.eval_every={c.run.eval_every} of {c.train.steps} steps"
    yield f"{what}: a learning curve of one point"
  if held < FEW:
    yield f"{held} held-out rows to measure on: raise corpus.heldout_share"


def outlay(stages: Stages) -> Iterator[str]:
  """Yields what all of it takes, as far as that is known before."""
  of, c = stages.trainings, stages.config
  corpus = manifest_lib.read(stages.corpus)
  specs = [*filter(None, map(of.scorer, ROLES)), *map(of.student, c.all_names)]
  made = [manifest_lib.read(s.folder / MANIFEST) for s in specs]
  left = [s for s, manifest in zip(specs, made) if not manifest]
  words = f"{len(left)} of {len(specs)} models"
  if left:
    first = left[0].stage
    flops = sum(s.token_flops * s.last_step * s.step_tokens for s in left)
    parameters = sum(s.shape.parameters() for s in left)
    # Weights and two moments of each checkpoint, and the weights alone.
    size = 4 * (3 * c.run.keep_checkpoints + 1) * parameters
    upto = [*itertools.takewhile(lambda name: name != first, c.stages), first]
    hint = f"time is told here after --stages={','.join(upto)}"
    words += f", {short(parameters)} parameters, {flops:.3g} FLOPs, up to "
    words += f"{size / 1e9:.2g} GB of checkpoints and weights; "
    words += _time(flops, made, "train_flops") or hint
  yield f"to train    {words}"
  models = of.networks()
  made = [manifest_lib.read(m.table / MANIFEST) for m in models]
  left = [m for m, manifest in zip(models, made) if not manifest]
  words = f"{len(left)} of {len(models)} models"
  if left and not corpus:
    words += ", FLOPs are told when there is a corpus"
  elif left:
    # A little more than will be counted: as if all rows were full.
    n, length = corpus.counts, c.corpus.max_length
    tokens = n["tokens"] * n["split train"] / n["rows"] * c.score.share
    known = [m for m in left if not m.path or hub.is_known(m.path)]
    shapes = [m.shape() or of.ref(REFERENCE).shape() for m in known]
    flops = sum(tokens * shape.forward_flops(length) for shape in shapes)
    words += f", {short(tokens)} tokens, {flops:.3g} FLOPs"
    words += " and of what is not fetched yet" * (len(known) < len(left)) + "; "
    hint = "time left is told after the first batches"
    words += _time(flops, made, "flops") or hint
  yield f"to score    {words}"


def _time(flops: float, made: Sequence[Manifest | None], key: str) -> str:
  """How long these FLOPs take at the paces of what was made; "" of nothing."""
  details = [m.details for m in made if m]
  times = [flops * d["seconds"] / d[key] for d in details if d.get(key)]
  if not times:
    return ""
  least, most = duration(min(times)), duration(max(times))
  most = f" to {most}" if max(times) > 1.1 * min(times) else ""
  return f"about {least}{most} at this workdir's pace"
