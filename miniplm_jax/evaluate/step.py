"""Stage evaluate: NLL on held-out rows by domain, and zero-shot tasks."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from miniplm_jax.core import fields, groups, hosts
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import CONVERTED, MANIFEST, Workdir
from miniplm_jax.evaluate import rows as rows_lib
from miniplm_jax.evaluate import tasks_step as tasks_stage
from miniplm_jax.evaluate.subjects import Subject, subjects
from miniplm_jax.training import comparable

STAGE = "evaluate"


def steps(config, workdir: Workdir) -> list[Step]:
  """One step a student, and one each for teacher and reference; then tasks."""
  found = [_step(config, it) for it in subjects(config, workdir)]
  return found + tasks_stage.steps(config, workdir)


def _step(config, it: Subject) -> Step:
  return Step(
    stage=STAGE,
    manifest=it.folder / "evaluation.json",
    settings={
      "max_rows": config.evaluate.max_rows,
      "ignore_domains": list(config.evaluate.ignore_domains),
      "dtype": it.dtype,
    },
    inputs={**it.corpus, "model": it.folder / MANIFEST},
    outputs=(it.folder / rows_lib.NAME,),
    effect=functools.partial(_effect, it),
    is_measure=True,
    summary=f"held-out loss of {it.name}",
    run=lambda inputs: _run(config, it, inputs),
  )


def _effect(it: Subject, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Which rows a model is measured on, and how."""
  corpus = manifest_lib.read(it.corpus.get(CONVERTED, it.corpus["corpus"]))
  rows = corpus.counts.get("split heldout") if corpus else None
  most = settings["max_rows"]
  return {
    "dtype": settings["dtype"],
    "ignore_domains": sorted(set(settings.get("ignore_domains") or ())),
    # Of fewer rows than these all are taken.
    "max_rows": most if rows is None else fields.stride(rows, most),
  }


def _run(config, it: Subject, inputs):
  import numpy as np

  from miniplm_jax.core.log import Progress
  from miniplm_jax.corpus import ignored as ignored_lib
  from miniplm_jax.corpus import trained_rows
  from miniplm_jax.corpus.store import open_corpus
  from miniplm_jax.models import sharding
  from miniplm_jax.score.scorer import Scorer

  run = config.run
  corpus = open_corpus(inputs)
  row_ids = corpus.heldout_rows(config.evaluate.max_rows)
  if not len(row_ids):
    raise UserError(
      "there are no held-out rows",
      f"corpus {corpus.directory}",
      "raise corpus.heldout_share, or leave out --stages=evaluate",
    )
  domain, ignored = corpus.domains(row_ids), config.evaluate.ignore_domains
  ignored_lib.tell(STAGE, ignored, inputs)
  if np.isin(domain, list(ignored)).all():
    raise UserError(
      "every held-out row is of a domain that does not count",
      f"config.evaluate.ignore_domains={','.join(ignored)}",
      "ignore fewer domains",
    )
  if it.ref:
    heldout = row_ids, it.name, "held-out rows"
    trained_rows.refuse(it.ref.folder(), corpus, *heldout)
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  models = {it.name: it.load(inputs, mesh, it.dtype)}
  scorer = Scorer.configured(config.score, models, corpus, mesh, dtype=it.dtype)
  every = run.log_every_seconds
  with Progress(
    f"{STAGE} {it.name}", len(row_ids), "rows", every=every
  ) as progress:
    by_model, count, _ = scorer(row_ids, progress=progress.update)
  keep = count > 0
  nll, count = by_model[it.name][keep].astype(np.float64), count[keep]
  n_bytes = corpus.index["n_bytes"].to_numpy()[row_ids][keep]
  folder = inputs["model"].directory
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": inputs["model"].weights,
    "counts": {"rows": len(row_ids)},
    "files": hosts.agree(
      lambda: rows_lib.write(folder, row_ids[keep], nll, count)
    ),
    "details": {
      "loss": grouped_losses(domain[keep], nll, count, n_bytes, ignored),
      comparable.LOSS: comparable.digest(
        corpus, row_ids[~np.isin(domain, list(ignored))]
      ),
    },
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


def grouped_losses(
  domain, nll, count, n_bytes, ignored: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
  """`Loss` of all rows and of each domain, as evaluation.json has them.

  Args:
    domain: name of each row's, object [n].
    nll: Σ nll of each row, float64 [n].
    count: tokens of each row [n].
    n_bytes: UTF-8 bytes of each row's text [n].
    ignored: domains that are listed and do not count in the total.

  Returns:
    A mapping of `groups.with_total`.
  """
  import numpy as np

  def loss(rows):
    found = held_out_loss(nll[rows], count[rows], n_bytes[rows])
    return dataclasses.asdict(found)

  names, code = np.unique(domain, return_inverse=True)
  rows = groups.places(code, len(names))
  total = loss(~np.isin(domain, np.array([*ignored], object)))
  return groups.with_total(total, dict(zip(names.tolist(), map(loss, rows))))


def losses(evaluation: Manifest) -> dict[str, dict[str, Any]]:
  """The losses of an evaluation.json, see `grouped_losses`.

  Raises:
    UserError: in it the domains do not make up the total: earlier versions
      let a domain called "all" take its place.
  """
  found = evaluation.details["loss"]
  total = found.get(groups.ALL, {}).get("rows", 0)
  ignored = set(map(groups.key, evaluation.settings.get("ignore_domains", ())))
  rows = [
    loss.get("rows", 0)
    for name, loss in found.items()
    if name != groups.ALL and name not in ignored
  ]
  if groups.ALL not in found or (rows and sum(rows) != total):
    raise UserError(
      f"the loss of “{groups.ALL}” is of {total:,} rows, but the domains that "
      f"count have {sum(rows):,}",
      str(evaluation.path),
      f"evaluate again with --stages={STAGE} --force",
    )
  return found


def ignored(evaluation: Manifest) -> str:
  """Which domains do not count, in words."""
  names = ", ".join(evaluation.settings.get("ignore_domains", ()))
  return f"Not counted in “all”: {names}." if names else ""
