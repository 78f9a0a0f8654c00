"""Stage score: the rows of D under the teacher and under the reference.

Only (Σ nll, tokens) are kept, so how the two are made into one score is
decided at selection, without any model.
"""

import time

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.job import Job
from miniplm_jax.core.progress import Progress, say
from miniplm_jax.core.workdir import MANIFEST, Workdir

STAGE = "score"
ROLES = ("teacher", "reference")


def jobs(config, workdir: Workdir) -> list[Job]:
  """One job a model."""
  return [_job(role, config, workdir) for role in ROLES]


def _job(role: str, config, workdir: Workdir) -> Job:
  c = config[role]
  directory = workdir.scores(c.name)
  return Job(
    stage=STAGE,
    manifest=directory / MANIFEST,
    settings={
      "role": role,
      "dtype": config.score.dtype,
      "rows_per_part": config.score.rows_per_part,
      "lengths": list(config.score.lengths),
      "batch_tokens": config.score.batch_tokens,
    },
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      "weights": _weights(c, workdir.scorer(role)),
    },
    outputs=(directory,),
    summary=f"Σ nll of every row of D under the {role} "
    f"{c.path or 'trained here'}, {config.score.dtype}",
    run=lambda inputs: _run(config, role, workdir, directory, inputs),
  )


def _weights(c, trained):
  """The manifest of a model trained here, or a given one's fingerprint."""
  from miniplm_jax.core import files

  if not c.path:
    return trained / MANIFEST
  return lambda: files.fingerprint_of_folder(c.path, c.revision)


def load_model(c, workdir: Workdir, role: str, mesh, dtype):
  """The teacher or reference, from its Hugging Face directory.

  Returns:
    (directory, `Decoder` with parameters in `dtype`).
  """
  import jax.numpy as jnp

  from miniplm_jax.models import hub, huggingface

  if c.path:
    directory = hub.resolve(c.path, c.revision)
  else:
    directory = workdir.scorer(role) / "hf"
  return directory, huggingface.load(directory, mesh, jnp.dtype(dtype))


def _check_tokenizer(directory, corpus):
  """Refuses a model that reads the corpus's ids as other text."""
  from miniplm_jax.corpus import tokenizer

  if not (directory / "tokenizer.json").exists():
    say(STAGE, f"no tokenizer.json in {directory}: taken to be the corpus's")
    return
  ours = corpus.tokenizer()
  theirs = tokenizer.load(directory, ours.eos_token)
  if ours.model() != theirs.model():
    raise UserError(
      "the model has another tokenizer than the corpus",
      f"{directory / 'tokenizer.json'} and {corpus.directory / 'tokenizer'}",
      "tokenize the corpus with the model's tokenizer",
    )


def _run(config, role, workdir, directory, inputs):
  import numpy as np

  from miniplm_jax.core import files
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.score import table
  from miniplm_jax.score.scorer import Scorer

  c, run = config.score, config.run
  corpus = Corpus(inputs["corpus"])
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  if "weights" in inputs:
    inputs["weights"].check_sizes()
  source, model = load_model(config[role], workdir, role, mesh, c.dtype)
  _check_tokenizer(source, corpus)
  corpus.check_vocabulary(
    model.arch.vocab_size,
    str(source),
    "tokenize the corpus with the model's tokenizer",
  )
  scorer = Scorer(
    model,
    corpus,
    mesh,
    dtype=c.dtype,
    lengths=c.lengths,
    batch_tokens=c.batch_tokens,
  )
  # D is the split "train"; a model trained here has seen only its own.
  row_ids = corpus.rows_of("train")
  ids = np.split(row_ids, range(c.rows_per_part, len(row_ids), c.rows_per_part))
  parts = len(ids)
  scored, start = 0, time.monotonic()
  weights = huggingface.weights_fingerprint(model)
  names = [table.part_name(part, parts) for part in range(parts)]
  done = {n for n in names if table.is_done(directory / n, weights)}
  with Progress(
    f"{STAGE} {config[role].name}",
    len(row_ids),
    "rows",
    done=sum(len(i) for n, i in zip(names, ids) if n in done),
    every=run.log_every_seconds,
  ) as progress:
    for part, of_part in zip(names, ids):
      if part in done:
        continue
      nll_sum, n_tokens = scorer(of_part, progress.update)
      path = directory / part
      table.write_part(path, of_part, nll_sum, n_tokens, weights)
      scored += int(n_tokens.sum())
  seconds = time.monotonic() - start
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": weights,
    "files": {n: files.describe(directory / n) for n in names},
    "counts": {"rows": len(row_ids), "parts": parts},
    "details": {
      "score/tokens_per_second": round(scored / seconds, 1),
      "tokens_this_session": scored,
      "model": str(source),
    },
  }
