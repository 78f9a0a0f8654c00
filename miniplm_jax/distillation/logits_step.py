"""Stage logits: what a frozen model says of each token, once, for methods.

`sparse_kd` reads the teacher's likeliest or sampled ids, `token_selection`
the −log p of the labels under its frozen model. For other methods there is
nothing to do.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from miniplm_jax.core import files, hosts, pieces
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.code import Version
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.step import Input, Step
from miniplm_jax.core.workdir import MANIFEST, PARTIAL, Workdir
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.distillation import logits_table
from miniplm_jax.methods import LABELS, LABELS_OF, OBJECTIVES
from miniplm_jax.models.ref import REFERENCE, ModelRef
from miniplm_jax.score import settings as score_settings

STAGE = LABELS
_CODE = (  # makes a part
  "distillation/logits.py",
  "distillation/logits_table.py",
  "models/huggingface.py",
)


class _Table(NamedTuple):
  """One folder of labels.

  Attributes:
    directory: selection/<name>/logits/<model>-<what is asked of it>.
    selection: its rows.
    source: the model whose words they are.
    settings: what decides them.
  """

  directory: epath.Path
  selection: str
  source: ModelRef
  settings: Mapping[str, Any]


def steps(config, workdir: Workdir) -> list[Step]:
  """One step a folder; methods may share it."""
  found = config.names
  tables = [_table(config, workdir, names) for names in found]
  by_folder = {str(t.directory): t for t in tables if t}
  return [_step(config, workdir, table) for table in by_folder.values()]


def inputs(config, workdir: Workdir, names) -> dict[str, Input]:
  """What a student that trains on labels reads of them.

  Args:
    config: the whole config.
    workdir: of the run.
    names: of `methods.for_method`.

  Returns:
    The labels, and what the config says of them, which is refused if they
    were made otherwise.
  """
  table = _table(config, workdir, names)
  path = table.directory / MANIFEST
  source, how = table.source, (dict(table.settings), path, STAGE)
  idle = logits_table.idle(table.settings)
  return {STAGE: path, LABELS_OF: lambda: source.as_configured(*how, idle)}


def _table(config, workdir: Workdir, names) -> _Table | None:
  """The labels that a method trains on, if it does."""
  objective = OBJECTIVES[names.objective]
  if not objective.labels:
    return None
  asked = objective.labels(config.section_of(objective))._asdict()
  role = asked.pop("role")
  source = ModelRef.of_role(role, config.roles[role], workdir)
  selection = workdir.selection(names.selection)
  how = score_settings.of_table(config.score)
  settings = how | asked | {"rows_per_part": config.logits.rows_per_part}
  directory = _directory(selection / "logits", source.name, asked)
  return _Table(directory, names.selection, source, settings)


def _directory(
  folder: epath.Path, model: str, asked: Mapping[str, Any]
) -> epath.Path:
  """Where labels lie: what is asked for tells one table from another.

  A folder of an earlier version, which had the model's name alone, is used
  if it holds just that.
  """
  asked = {k: v for k, v in asked.items() if k not in logits_table.idle(asked)}
  for name in (MANIFEST, PARTIAL):
    made = manifest_lib.read(folder / model / name)
    if made and {k: made.settings.get(k) for k in asked} == asked:
      return folder / model
  words = map(str, asked.values() if asked["ids"] else ["nll"])
  return folder / "-".join([model, *words])


def _step(config, workdir: Workdir, table: _Table) -> Step:
  s, source = table.settings, table.source
  what = "−log p of the labels"
  if s["ids"]:
    what += f" and {s['ids']} ids a token by {s['kind']}"
  return Step(
    stage=STAGE,
    manifest=table.directory / MANIFEST,
    settings=s,
    idle=logits_table.idle(s),
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      "selection": workdir.selection(table.selection) / MANIFEST,
      "weights": source.as_input(),
    },
    outputs=(table.directory,),
    code=Version(_CODE, ("jax",), config.run.any_code),
    summary=f"{what}, of selection {table.selection} under {source.name} "
    f"{source.origin}, {s['dtype']}",
    run=lambda found: _run(config, table, found),
  )


def _run(config, table: _Table, inputs) -> dict[str, Any]:
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.distillation.logits import Labeler
  from miniplm_jax.models import huggingface, sharding

  run, directory, settings = config.run, table.directory, table.settings
  corpus = Corpus(inputs["corpus"])
  corpus.check_tokenizer()
  ids = corpus.manifest.details["vocab_size"]
  if settings["ids"] > ids:
    raise UserError(
      f"the corpus has {ids} token ids",
      f"config.sparse_kd.ids={settings['ids']}",
      "give fewer",
    )
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  dtype = settings["dtype"]
  model = table.source.load_as_scored(corpus, mesh, dtype)
  weights = huggingface.weights_fingerprint(model)
  mark = logits_table.mark(settings, weights, model.arch.fingerprint)
  labeler = Labeler(model, corpus, mesh, settings)
  rows, size = kept_rows(inputs["selection"]), settings["rows_per_part"]
  units = [rows[i : i + size] for i in range(0, len(rows), size)]
  names = [logits_table.part_name(i, len(units)) for i in range(len(units))]

  def has(i: int) -> bool:
    return logits_table.holds(directory / names[i], units[i].tolist(), mark)

  def make(i: int, progress):
    marks = itertools.repeat(mark)
    labels = labeler(units[i], progress)
    records = map(logits_table.encode, units[i].tolist(), labels, marks)
    path = directory / names[i]
    return functools.partial(logits_table.write_part, path, records)

  sizes = [len(unit) for unit in units]
  pieces.fill(STAGE, sizes, has, make, run.log_every_seconds)
  described = hosts.agree(
    lambda: {name: files.describe(directory / name) for name in names}
  )
  tokens = int((corpus.lengths[rows] - 1).sum())
  stored = sum(facts["bytes"] for facts in described.values())
  log(STAGE, f"{tokens:,} tokens, {stored / tokens:.1f} bytes a token")
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": weights,
    "files": described,
    "counts": {"rows": len(rows), "tokens": tokens, "parts": len(units)},
    "details": {
      "bytes_per_token": stored / tokens,
      "architecture": model.arch.fingerprint,
      **_cost(table, model.arch, corpus.lengths[rows] - 1, inputs),
    },
  }


def _cost(table: _Table, arch, lengths, inputs) -> dict[str, Any]:
  """FLOPs of this, and of the reference's training; a teacher was there."""
  from miniplm_jax.training import flops

  parts = {
    f"logits of {table.source.name}": flops.rows(arch.forward_flops, lengths)
  }
  if table.source.role == REFERENCE and "weights" in inputs:
    trained = inputs["weights"].details.get("train_flops")
    parts["training of reference"] = trained
  return {flops.OFFLINE: parts}
