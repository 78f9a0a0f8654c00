"""Stage score: the rows of D under the teacher, the reference, and others.

Only (Σ nll, tokens) are kept, so how two models are made into one score is
decided at selection, without any model.
"""

import dataclasses
import functools
from collections.abc import Mapping

from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST, Workdir, table_files

STAGE = "score"
ROLES = ("teacher", "reference")
LAYOUT = ("rows_per_part", "lengths", "batch_tokens")

# The inputs' manifests of several steps, by the name of the table.
Inputs = Mapping[str, Mapping[str, Manifest]]


@dataclasses.dataclass(frozen=True)
class Source:
  """Where the log-probs of one table come from.

  Attributes:
    name: the table, scores/<name>.
    path: directory or hub id; "" is the model that was trained here.
    revision: of a hub id.
    trained: folder of the model that was trained here.
    scores: a file of scores that were made elsewhere, or "".
    is_int8: the layers' weights are rounded to int8.
    table: the folder of that table, or "".
  """

  name: str
  path: str
  revision: str
  trained: str
  scores: str
  is_int8: bool
  table: str = ""


def sources(config, workdir: Workdir) -> list[Source]:
  """Teacher, reference, and more."""
  found = []
  for role in ROLES:
    c = getattr(config, role)
    is_int8 = role == "teacher" and config.score.int8_teacher
    given = c.path, c.revision, str(workdir.scorer(role)), c.scores, is_int8
    found.append(Source(c.name, *given, str(workdir.scores(c.name))))
  for text in config.score.more:
    name, _, path = text.partition("=")
    given = path, "main", "", "", False
    found.append(Source(name, *given, str(workdir.scores(name))))
  return found


def tables_of(config, workdir: Workdir) -> list[Source]:
  """Those of `sources` that a run makes a table of."""
  unused = {
    getattr(config, role).name for role in set(ROLES) - set(config.scorers)
  }
  return [s for s in sources(config, workdir) if s.name not in unused]


def roles_with_model(config) -> tuple[str, ...]:
  """Those of `ROLES` that score here; of others only scores are known."""
  return tuple(
    role for role in config.scorers if not getattr(config, role).scores
  )


def steps(config, workdir: Workdir) -> list[Step]:
  """One step a table; they share a pass over the data."""
  made = tables_of(config, workdir)
  tables = {}  # (table, architecture) by name, from the pass for the merge

  def together(inputs):
    wanted = [s for s in made if s.name in inputs]
    _fill(config, workdir, wanted, inputs, tables)

  found = [_imported(config, workdir, s) for s in made if s.scores]
  for source in made:
    if not source.scores:
      # Without sharing, each gets a function of its own.
      shared = together
      if not config.run.score_together:
        shared = functools.partial(together)
      found.append(_scored(config, workdir, source, shared, tables))
  return found


def _scored(config, workdir: Workdir, source: Source, together, tables) -> Step:
  c = config.score
  directory = workdir.scores(source.name)
  return Step(
    stage=STAGE,
    manifest=directory / MANIFEST,
    settings={
      **settings(config),
      "int8": source.is_int8,
      **({"share": c.share, "seed": c.seed} if c.share < 1 else {}),
    },
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      "weights": weights_input(source),
    },
    layout=LAYOUT,
    # Each part says what rows and weights it was made from.
    rechecks=("corpus", "weights"),
    grows=True,
    outputs=table_files(directory),
    summary=f"Σ nll of {rows_in_words(config)} under {source.name} "
    f"{source.path or 'trained here'}, {c.dtype}"
    + (", int8 weights" if source.is_int8 else ""),
    together=together,
    is_shared=True,
    run=lambda inputs: _merge(config, inputs, source, *tables[source.name]),
  )


def settings(config) -> dict[str, object]:
  """How rows are scored, by whatever model."""
  c = config.score
  return {
    "dtype": c.dtype,
    "rows_per_part": c.rows_per_part,
    "lengths": list(c.lengths),
    "batch_tokens": c.batch_tokens,
  }


def rows_in_words(config) -> str:
  """Which rows of D are scored."""
  share = config.score.share
  return "every row of D" if share >= 1 else f"{share:.4g} of the rows of D"


def units_to_score(config, corpus):
  """The units of the tables that this config asks for."""
  from miniplm_jax.score import sample
  from miniplm_jax.score.units import units_of

  c = config.score
  return units_of(corpus, c.rows_per_part, sample.rows(corpus, c.share, c.seed))


def _imported(config, workdir: Workdir, source: Source) -> Step:
  directory = workdir.scores(source.name)
  return Step(
    stage=STAGE,
    manifest=directory / MANIFEST,
    settings={"rows_per_part": config.score.rows_per_part},
    layout=LAYOUT,
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      "scores": Imported(source.scores),
    },
    outputs=table_files(directory),
    summary=f"scores of {source.name} from {source.scores}",
    run=lambda inputs: _import(config, workdir, source, inputs),
    is_host_only=True,
  )


@dataclasses.dataclass(frozen=True)
class Imported:
  """A file of scores, and what FILE.json beside it says they are."""

  path: str

  def __call__(self) -> str:
    """The fingerprint of both."""
    beside = epath.Path(f"{self.path}.json")
    if not epath.Path(self.path).is_file():
      raise GoneError(
        "there is no such file of scores",
        self.path,
        "give a .parquet or .npy file as config.teacher.scores or "
        "config.reference.scores",
      )
    said = files.sha256(beside) if beside.exists() else ""
    return files.digest([files.sha256(self.path), said])


def weights_input(source: Source):
  """The manifest of a model trained here, or a given one's fingerprint."""
  from miniplm_jax.models import hub

  if not source.path:
    return epath.Path(source.trained) / MANIFEST
  return hub.Given(source.path, source.revision)


def load_checked(source: Source, corpus, mesh, dtype):
  """A model in `dtype` that reads the corpus's ids as the corpus means them."""
  import jax.numpy as jnp

  from miniplm_jax.models import hub, huggingface

  directory = hub.folder_of(source)
  model = huggingface.load(directory, mesh, jnp.dtype(dtype))
  _check_tokenizer(directory, corpus)
  corpus.check_vocabulary(
    model.arch.vocab_size,
    str(directory),
    "tokenize the corpus with the model's tokenizer",
  )
  return model


def _check_tokenizer(directory, corpus):
  """Refuses a model that reads the corpus's ids as other text."""
  from miniplm_jax.corpus import tokenizer

  if not (directory / "tokenizer.json").exists():
    log(STAGE, f"no tokenizer.json in {directory}: taken to be the corpus's")
    return
  ours = corpus.tokenizer()
  theirs = tokenizer.load(directory, ours.eos_token)
  theirs.warn_of_bos(STAGE, ours.bos_token)
  # They may differ in tokens that no row has.
  if ours.model(corpus.ids) != theirs.model(corpus.ids):
    raise UserError(
      "the model has another tokenizer than the corpus",
      f"{directory / 'tokenizer.json'} and {corpus.directory / 'tokenizer'}",
      "tokenize the corpus with the model's tokenizer",
    )


def settings_of(config, corpus, model, is_int8: bool) -> dict[str, str]:
  """What each part says it was scored with.

  Of the model both: other weights and the same weights otherwise put to use
  (a `rope_theta`, an epsilon) are another model.
  """
  from miniplm_jax.models import huggingface
  from miniplm_jax.score import units

  c = config.score
  how = [c.dtype, list(c.lengths), c.batch_tokens, is_int8]
  return {
    "weights": huggingface.weights_fingerprint(model),
    "tokenizer": corpus.manifest.tokenizer,
    "code": units.code(),
    "architecture": model.arch.fingerprint,
    "settings": files.digest(how),
  }


def scorer_of(
  config, models, corpus, mesh, dtype: str = "", lengths=None, **what
):
  """The `Scorer` that this config asks for, but for what is given."""
  from miniplm_jax.score.scorer import Scorer

  c = config.score
  return Scorer(
    models,
    corpus,
    mesh,
    dtype=dtype or c.dtype,
    lengths=c.lengths if lengths is None else lengths,
    batch_tokens=c.batch_tokens,
    **what,
  )


def _fill(
  config, workdir: Workdir, wanted: list[Source], inputs: Inputs, tables: dict
):
  """Scores under all of these models until no part is missing."""
  import numpy as np

  from miniplm_jax.corpus import trained_rows
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.models import hub, sharding
  from miniplm_jax.score.work import Table, Worker

  run = config.run
  corpus = Corpus(inputs[wanted[0].name]["corpus"])
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  units = units_to_score(config, corpus)
  rows = np.concatenate([unit.rows for unit in units])
  models = {}
  for source in wanted:
    trained_rows.refuse(hub.folder_of(source), corpus, rows, source.name)
    model = load_checked(source, corpus, mesh, config.score.dtype)
    facts = settings_of(config, corpus, model, source.is_int8)
    directory = workdir.scores(source.name)
    if source.is_int8:
      from miniplm_jax.score import rounding

      model = rounding.rounded(config, workdir, model, corpus, mesh, facts)
    models[source.name] = model
    tables[source.name] = (
      Table(source.name, directory, workdir.claims_of(directory), facts),
      model.arch,
    )
  filled = [tables[source.name][0] for source in wanted]
  scorer = scorer_of(config, models, corpus, mesh)
  Worker(scorer, units, filled, run).fill()


def _merge(config, inputs, source: Source, filled, arch=None) -> dict:
  """`merge` of a table of its own; `arch` is unknown of imported scores."""
  import numpy as np

  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.training import flops

  corpus = Corpus(inputs["corpus"])
  units = units_to_score(config, corpus)

  def scorer_on(mesh):
    from miniplm_jax.score import check

    facts = {"dtype": config.score.dtype, "int8": source.is_int8}
    facts |= {k: filled.made_by[k] for k in ("weights", "architecture")}
    return check.rescorer(config, source, corpus, mesh, facts)

  made = merge(config, filled, corpus, units, arch and scorer_on)
  total, parameters = None, None
  if arch:
    parameters = arch.parameters()
    row_ids = np.concatenate([unit.rows for unit in units])
    total = flops.rows(arch.forward_flops, corpus.lengths[row_ids] - 1)
  if made:  # in the process that writes the manifest
    made["details"][flops.OFFLINE] = {f"scoring by {filled.model}": total}
    made["counts"]["parameters"] = parameters
  return made


def merge(config, filled, corpus, units, scorer_on=None) -> dict:
  """The fields of a table's manifest, when every part is there.

  Args:
    config: the configuration.
    filled: the `work.Table`.
    corpus: that was scored.
    units: of the table.
    scorer_on: for `check.after_merge`; None if there is no model.

  Raises:
    UserError: a part is missing or not of this table, or some of its rows,
      scored again, are not what it says.

  Returns:
    Nothing in other processes than the first.
  """
  from miniplm_jax.core import claims, hosts
  from miniplm_jax.score import check, table, work

  made = {}

  def merged():
    described, counts = table.merge(
      filled.directory, units, filled.made_by, config.run.any_code
    )
    claims.Board(filled.claims, 0).clear({unit.name for unit in units})
    made.update(
      {
        "tokenizer": corpus.manifest.tokenizer,
        "weights": filled.made_by["weights"],
        "files": described,
        "counts": counts,
        "details": work.summary(filled.directory)
        | {"architecture": filled.made_by.get("architecture")},
      }
    )
    log(filled.stage, work.in_words(made["details"]))

  hosts.agree(merged)
  checked = {"rows": 0}
  if scorer_on and config.run.self_check_rows:
    checked = check.after_merge(config, filled, units, scorer_on)
  if made:
    made["details"]["self_check"] = checked
  return made


def _import(config, workdir: Workdir, source: Source, inputs) -> dict:
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.score import importing
  from miniplm_jax.score.work import Table

  corpus, directory = Corpus(inputs["corpus"]), workdir.scores(source.name)
  facts = importing.write_parts(
    source.scores, directory, corpus, config.score.rows_per_part
  )
  filled = Table(source.name, directory, workdir.claims_of(directory), facts)
  return _merge(config, inputs, source, filled)
