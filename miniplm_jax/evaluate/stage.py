"""Stage evaluate: NLL on held-out rows, overall and by domain."""

import dataclasses

from miniplm_jax.convert import stage as convert_stage
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.job import Job
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.methods import for_method, methods
from miniplm_jax.models import architecture
from miniplm_jax.score import stage as score_stage
from miniplm_jax.trainer import training_job

STAGE = "evaluate"
ALL = "all"  # the group of all rows, less the domains that are ignored


def jobs(config, workdir: Workdir) -> list[Job]:
  """One job a student, and one each for teacher and reference."""
  found = [
    _student(config, workdir, for_method(config, m).student)
    for m in methods(config)
  ]
  sources = dict(zip(score_stage.ROLES, score_stage.sources(config, workdir)))
  return found + [
    _scorer(config, workdir, sources[role])
    for role in score_stage.roles_with_model(config)
  ]


def _student(config, workdir: Workdir, name: str) -> Job:
  arch = architecture.make(config.student.model)

  def load(inputs, mesh):
    return training_job.restore(inputs["model"], arch, config.train, mesh)

  folder = workdir.student(name)
  corpus = convert_stage.corpus_inputs(config, workdir, name)
  return _job(config, corpus, folder, name, config.train.dtype, load)


def _scorer(config, workdir: Workdir, source: score_stage.Source) -> Job:
  def load(unused_inputs, mesh):
    return score_stage.load_model(source, mesh, config.score.dtype)[1]

  folder = workdir.scores(source.name)
  corpus = {"corpus": workdir.corpus / MANIFEST}
  return _job(config, corpus, folder, source.name, config.score.dtype, load)


def _job(config, corpus, folder, name, dtype, load) -> Job:
  return Job(
    stage=STAGE,
    manifest=folder / "evaluation.json",
    settings={
      "name": name,
      "max_rows": config.evaluate.max_rows,
      "ignore_domains": list(config.evaluate.ignore_domains),
      "dtype": dtype,
    },
    inputs={**corpus, "model": folder / MANIFEST},
    outputs=(),
    summary=f"held-out loss of {name}",
    run=lambda inputs: _run(config, name, dtype, load, inputs),
  )


def _run(config, name, dtype, load, inputs):
  import numpy as np

  from miniplm_jax.core.progress import Progress
  from miniplm_jax.corpus.store import open_corpus
  from miniplm_jax.evaluate import rows
  from miniplm_jax.models import sharding

  run = config.run
  corpus = open_corpus(inputs)
  row_ids = corpus.heldout_rows(config.evaluate.max_rows)
  if not len(row_ids):
    raise UserError(
      "there are no held-out rows",
      f"corpus {corpus.directory}",
      "raise corpus.heldout_share, or leave out --stages=evaluate",
    )
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  models = {name: load(inputs, mesh)}
  scorer = score_stage.scorer_of(config, models, corpus, mesh, dtype)
  every = run.log_every_seconds
  with Progress(
    f"{STAGE} {name}", len(row_ids), "rows", every=every
  ) as progress:
    by_model, count, _ = scorer(row_ids, progress=progress.update)
  keep = count > 0
  domain = corpus.domains(row_ids)[keep]
  nll, count = by_model[name][keep].astype(np.float64), count[keep]
  n_bytes = corpus.index["n_bytes"].to_numpy()[row_ids][keep]
  groups = {ALL: ~np.isin(domain, list(config.evaluate.ignore_domains))}
  groups |= {d: domain == d for d in sorted(set(domain))}
  losses = {
    group: dataclasses.asdict(
      held_out_loss(nll[here], count[here], n_bytes[here])
    )
    for group, here in groups.items()
    if here.any()
  }
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": inputs["model"].weights,
    "counts": {"rows": len(row_ids)},
    # No output of the job: it may stay where evaluation.json is removed.
    "files": rows.write(inputs["model"].directory, row_ids[keep], nll, count),
    "details": {"loss": losses},
  }


@dataclasses.dataclass(frozen=True)
class Loss:
  """A held-out loss in nats.

  Attributes:
    instance_mean: mean over rows of the row's mean per token, as MiniPLM
      reports it.
    token_mean: mean over all tokens.
    bits_per_byte: Σ nll in bits over the text's UTF-8 bytes, which compares
      models of different tokenizers.
    rows: number of rows.
    tokens: number of tokens.
  """

  instance_mean: float
  token_mean: float
  bits_per_byte: float
  rows: int
  tokens: int


def held_out_loss(nll, count, n_bytes) -> Loss:
  """The means of per-row Σ nll [n] over count [n] tokens, n_bytes [n]."""
  import math

  from miniplm_jax.models import likelihood

  return Loss(
    *likelihood.mean_losses(nll, count),
    # A row may hold documents' ends alone.
    bits_per_byte=float(nll.sum()) / math.log(2) / max(int(n_bytes.sum()), 1),
    rows=len(nll),
    tokens=int(count.sum()),
  )
