"""Stage score: the rows of D under the teacher, the reference, and others.

Only (Σ nll, tokens) are kept, so how two models are made into one score is
decided at selection, without any model.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath, epy

from miniplm_jax.config import RunConfig, ScoreConfig, VerifyConfig
from miniplm_jax.config.sections import BATCH_TOKENS
from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.core.log import plain
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST, PARTIAL, Workdir, table_files
from miniplm_jax.models.ref import REFERENCE, TEACHER, Identity, ModelRef
from miniplm_jax.scoring import ngram
from miniplm_jax.scoring.ngram import NgramRef
from miniplm_jax.training import flops

with epy.lazy_imports():
  from miniplm_jax.corpus import kept_rows, store, trained_rows
  from miniplm_jax.models import sharding
  from miniplm_jax.scoring import check, importing, rounding, units, worker
  from miniplm_jax.scoring import scorer as scorer_lib

STAGE = "score"
VERIFY = "verify"  # the look

# The inputs' manifests of several steps, by the name of the table.
Inputs = Mapping[str, Mapping[str, Manifest]]


@dataclasses.dataclass(frozen=True)
class Scoring:
  """The tables of one corpus, and how they are made and checked."""

  score: ScoreConfig
  verify: VerifyConfig
  corpus: epath.Path  # its manifest
  # What to make tables of, each in its `table`.
  models: Sequence[ModelRef | NgramRef]
  workdir: Workdir  # in which tables are claimed
  run: RunConfig
  alpha: float  # the share that a selection keeps, for the bounds of int8
  # Selections, as inputs, whose rows are left out; then `share` is 1.
  but: Mapping[str, epath.Path] = dataclasses.field(default_factory=dict)
  # By model (table, architecture): what `_score` did, for `_finish`.
  _scored: dict[str, tuple] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    folders = [ref.table for ref in self.models]
    score = with_parts(self.score, self.corpus, folders)
    object.__setattr__(self, "score", score)

  def steps(self) -> list[Step]:
    """One step a table; scores of elsewhere come first.

    The others share a pass over the data.

    Raises:
      UserError: an int8 teacher has no reference, by which it is judged.
    """
    roles = {ref.role for ref in self.models}
    if self.score.int8_teacher and REFERENCE not in roles:
      raise UserError(
        "there is no reference: int8 is judged by the ranking of both",
        "score.int8_teacher",
        "give a model with that role",
      )
    steps = [self._imported(ref) for ref in self.models if ref.scores]
    count_pass = functools.partial(self._score_ngrams)
    shared_pass = functools.partial(self._score)
    ngrams = [ref for ref in self.models if isinstance(ref, NgramRef)]
    steps += [self._step(ref, count_pass) for ref in ngrams]
    for ref in self.models:
      if not ref.scores and ref not in ngrams:
        # Steps with one function share a pass; here each has one of its own.
        if not self.run.score_together:
          shared_pass = functools.partial(self._score)
        steps.append(self._step(ref, shared_pass))
    return steps

  @property
  def _rows(self) -> tuple[str, dict[str, Any]]:
    """Which rows are scored, in words; and the settings that say it."""
    share, seed = self.score.share, self.score.seed
    if self.but:
      return "the rest of D", {}
    if share >= 1:
      return "every row of D", {}
    return f"{share:.4g} of the rows of D", {"share": share, "seed": seed}

  def _step(self, ref: ModelRef | NgramRef, shared_pass) -> Step:
    score, is_int8, (rows, sample) = self.score, self._is_int8(ref), self._rows
    how, outputs = {**score.of_table, "int8": is_int8}, table_files(ref.table)
    if is_ngram := isinstance(ref, NgramRef):
      outputs = (*outputs, ref.table / ngram.COUNTS)
      how = {n: getattr(score, n) for n in ("rows_per_part", "ngram_buckets")}
    return Step(
      stage=STAGE,
      manifest=ref.table / MANIFEST,
      settings={**how, **sample},
      inputs={"corpus": self.corpus, "weights": ref.as_input(), **self.but},
      layout=ScoreConfig.LAYOUT,
      effect=ScoreConfig.effect,
      # Each part says what rows and weights it was made from. Of another text
      # all counts are others: none of them would hold.
      rechecks=("corpus",) if is_ngram else ("corpus", "weights"),
      policy=Policy(grows=True, is_shared=True),
      outputs=outputs,
      summary=f"Σ nll of {rows}, "
      + how.get("dtype", f"{score.ngram_buckets:,} buckets")
      + (", int8 weights" if is_int8 else "")
      + ", under",
      subject=f"{ref.name} {ref.origin}",
      # First one pass for all models, then each table's manifest.
      shared_pass=shared_pass,
      run=lambda inputs: self._finish(ref, inputs, *self._scored[ref.name]),
    )

  def _score_ngrams(self, inputs: Inputs):
    """As `_score`, under models that count n-grams."""
    refs = [ref for ref in self.models if ref.name in inputs]
    given = inputs[refs[0].name]
    corpus, run = store.Corpus(given["corpus"]), self.run
    scorer = ngram.NgramScorer(
      {ref: ref() for ref in refs},
      corpus,
      self.score.ngram_buckets,
      run.max_broken,
    )
    specs = [self._spec(ref, scorer.made_by(ref.name)) for ref in refs]
    self._scored.update({spec.model: (spec, None, scorer) for spec in specs})
    worker.Worker(scorer, self._units(corpus, given), specs, run).fill()

  def _is_int8(self, ref: ModelRef) -> bool:
    return self.score.int8_teacher and ref.role == TEACHER

  def _units(self, corpus, inputs: Mapping[str, Manifest]):
    """What is scored, of manifests of the step's inputs."""
    if self.but:  # all others, whatever share of D is scored
      rows = corpus.rows_of("train")
      kept = [kept_rows.kept_rows(inputs[name]) for name in self.but]
      rows = rows[~kept_rows.among_any(rows, kept)]
    else:
      rows = units.sampled_rows(corpus, self.score.share, self.score.seed)
    return units.units_of(corpus, self.score.rows_per_part, rows)

  def _score(self, inputs: Inputs):
    """Scores under all of these models until no part is missing."""
    score, run = self.score, self.run
    refs = [ref for ref in self.models if ref.name in inputs]
    given = inputs[refs[0].name]
    corpus, mesh = store.Corpus(given["corpus"]), sharding.mesh_of(run)
    units_to_score = self._units(corpus, given)
    rows = np.concatenate([unit.rows for unit in units_to_score])
    loaded = {}
    for ref in refs:
      if not self.but:  # by number; others may be copies of trained rows
        trained_rows.refuse(ref.folder(), corpus, rows, ref.name)
      model = ref.load(corpus, mesh, score.dtype)
      is_int8 = self._is_int8(ref)
      made_by = worker.made_by(score, corpus, model, is_int8)
      if is_int8:
        (reference,) = (r for r in self.models if r.role == REFERENCE)
        model = rounding.rounded(
          score, ref, model, reference, corpus, mesh, made_by, self.alpha
        )
      loaded[ref.name] = model
      self._scored[ref.name] = self._spec(ref, made_by), model.arch
    scorer = scorer_lib.Scorer(score, loaded, corpus, mesh)
    specs = [self._scored[ref.name][0] for ref in refs]
    worker.Worker(scorer, units_to_score, specs, run).fill()

  def _spec(self, ref: ModelRef, made_by: Mapping[str, str]):
    claims = self.workdir.claims_of(ref.table)
    return worker.TableSpec(ref.name, ref.table, claims, made_by)

  def _finish(
    self, ref, inputs, spec, arch=None, scorer=None
  ) -> dict[str, Any]:
    """The manifest's fields; `arch` is unknown of scores of elsewhere.

    What counts n-grams is a `scorer`, whose few operations are no FLOPs.
    """
    score, corpus = self.score, store.Corpus(inputs["corpus"])
    units_to_score = self._units(corpus, inputs)
    scorer_on, total, parameters = None, None, None
    if scorer:
      scorer_on, total = lambda unused_mesh: scorer, 0.0
      parameters = score.ngram_buckets
    if arch:
      parameters, by = arch.parameters(), spec.made_by
      expected = Identity(by["weights"], score.dtype, by["architecture"])
      scorer_on = functools.partial(
        check.rescorer, score, ref, corpus, expected, self._is_int8(ref)
      )
      row_ids = np.concatenate([unit.rows for unit in units_to_score])
      total = flops.rows(arch.forward_flops, corpus.lengths[row_ids] - 1)
    fields = check.merge(
      spec, corpus, units_to_score, self.run, self.verify, scorer_on
    )
    if fields:  # in the process that writes the manifest
      fields["details"][flops.OFFLINE] = {f"scoring by {spec.model}": total}
      fields["counts"]["parameters"] = parameters
      if arch and ref.path:
        fields["details"]["revision"] = ref.revision
    return fields

  def _imported(self, ref: ModelRef) -> Step:
    return Step(
      stage=STAGE,
      manifest=ref.table / MANIFEST,
      settings={"rows_per_part": self.score.rows_per_part},
      layout=ScoreConfig.LAYOUT,
      inputs={"corpus": self.corpus, "scores": Imported(ref.scores)},
      outputs=table_files(ref.table),
      summary=f"scores of {ref.name} from {ref.scores}",
      run=lambda inputs: self._import(ref, inputs),
      policy=Policy(is_host_only=True),
    )

  def _import(self, ref: ModelRef, inputs) -> dict[str, Any]:
    made_by = importing.write_parts(
      ref.scores,
      ref.table,
      store.Corpus(inputs["corpus"]),
      self.score.rows_per_part,
    )
    fields = self._finish(ref, inputs, self._spec(ref, made_by))
    fields["details"] |= importing.known(ref.scores)
    return fields

  def look(self, dry_run: bool):
    """Look verify: finished tables against the models that they name.

    Reads every part, compares it with its manifest, scores a random sample of
    rows again and compares each row. Writes nothing.

    Raises:
      UserError: a part is damaged, or a row is not what its model says.
    """
    if dry_run:
      rows, names = self.verify.rows, ", ".join(r.name for r in self.models)
      plain(f"  {VERIFY:9} would score {rows} rows of {names} again")
      return
    corpus = store.Corpus(manifest_lib.require(self.corpus))
    for ref in self.models:
      table = manifest_lib.require(ref.table / MANIFEST)
      table.check_inputs({"corpus": corpus.manifest})
      check.verify_table(self.score, self.verify, self.run, ref, table, corpus)


def with_parts(
  score: ScoreConfig, corpus: epath.Path, tables: Sequence[epath.Path]
) -> ScoreConfig:
  """Says how large parts and batches are, if the config does not.

  As large as those of a table that is begun or finished, else parts by the
  corpus, batches by the device. A corpus that is not there yet, or grows later,
  changes nothing of it.
  """
  paths = [folder / name for name in (PARTIAL, MANIFEST) for folder in tables]
  there = list(filter(None, map(manifest_lib.read, paths)))

  def stored(name: str) -> int:
    sizes = (table.settings.get(name) for table in there)
    return next(filter(None, sizes), 0)

  if not score.batch_tokens and stored("batch_tokens") != BATCH_TOKENS:
    score = score.replace(batch_tokens=stored("batch_tokens"))
  if score.rows_per_part:
    return score
  size = stored("rows_per_part")
  if not size and (made := manifest_lib.read(corpus)):
    batch = BATCH_TOKENS // made.settings["max_length"]
    size = min(max(made.counts["rows"] // 64, batch), BATCH_TOKENS)
  return score.replace(rows_per_part=size or BATCH_TOKENS)


@dataclasses.dataclass(frozen=True)
class Imported:
  """A file of scores, and what FILE.json beside it says; or a published one."""

  path: str

  def __call__(self) -> str:
    """The fingerprint of what is read."""
    if tables := importing.published(self.path):
      name = epath.Path(self.path).name
      return tables.files[f"{name}/{importing.FILE}"]["sha256"]
    beside = epath.Path(f"{self.path}.json")
    if not epath.Path(self.path).is_file():
      raise GoneError(
        "there is no such file of scores",
        self.path,
        "give a .parquet or .npy file, or FOLDER/NAME of stage publish, as "
        "config.teacher.scores or config.reference.scores",
      )
    about = files.sha256(beside) if beside.exists() else ""
    return files.digest([files.sha256(self.path), about])
