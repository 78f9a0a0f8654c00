"""Stage evaluate: NLL on held-out rows by domain, and zero-shot tasks."""

import dataclasses

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.job import Job
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.evaluate import tasks_stage
from miniplm_jax.evaluate.subjects import Subject, subjects
from miniplm_jax.score import stage as score_stage

STAGE = "evaluate"
ALL = "all"  # the group of all rows, less the domains that are ignored


def jobs(config, workdir: Workdir) -> list[Job]:
  """One job a student, and one each for teacher and reference; then tasks."""
  found = [_job(config, it) for it in subjects(config, workdir)]
  return found + tasks_stage.jobs(config, workdir)


def _job(config, it: Subject) -> Job:
  return Job(
    stage=STAGE,
    manifest=it.folder / "evaluation.json",
    settings={
      "name": it.name,
      "max_rows": config.evaluate.max_rows,
      "ignore_domains": list(config.evaluate.ignore_domains),
      "dtype": it.dtype,
    },
    inputs={**it.corpus, "model": it.folder / MANIFEST},
    outputs=(),
    summary=f"held-out loss of {it.name}",
    run=lambda inputs: _run(config, it, inputs),
  )


def _run(config, it: Subject, inputs):
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
  models = {it.name: it.load(inputs, mesh, it.dtype)}
  scorer = score_stage.scorer_of(config, models, corpus, mesh, it.dtype)
  every = run.log_every_seconds
  with Progress(
    f"{STAGE} {it.name}", len(row_ids), "rows", every=every
  ) as progress:
    by_model, count, _ = scorer(row_ids, progress=progress.update)
  keep = count > 0
  domain = corpus.domains(row_ids)[keep]
  nll, count = by_model[it.name][keep].astype(np.float64), count[keep]
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
