"""Stage seqkd: the rows of method seqkd, whose ends the teacher writes.

SeqKD as in MiniPLM's paper: the first 768 tokens of a row prompt the teacher,
which generates the rest; the student trains on the whole. Rows are those of
`pretrain`. A row that the teacher ends stays short; one that is no longer
than a prompt stays as it is. The corpus that is written also holds the
held-out rows, as they are, so a student is never measured on generated text.
"""

import collections
import functools

from miniplm_jax.core import files, hosts, manifest, pieces
from miniplm_jax.core.code import Version
from miniplm_jax.core.log import log
from miniplm_jax.core.step import Input, Step
from miniplm_jax.core.workdir import GENERATED, MANIFEST, Workdir
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.methods import SEQKD
from miniplm_jax.models.ref import TEACHER, ModelRef

STAGE = SEQKD
_CODE = ("distillation/seqkd_rows.py", "models/huggingface.py")  # makes a shard


def steps(config, workdir: Workdir) -> list[Step]:
  """One step a student that trains on generated rows."""
  found = config.names
  return [_step(config, workdir, names) for names in found if names.generated]


def corpus_inputs(config, workdir: Workdir, names) -> dict[str, Input]:
  """What a stage that reads the generated rows of a student has as inputs.

  Args:
    config: the whole config.
    workdir: of the run.
    names: of `methods.for_method`.

  Returns:
    The generated corpus, which `store.open_corpus` prefers to the teacher's,
    and what the config says of it, which is refused if the corpus is another;
    nothing for a method that generates none.
  """
  if not names.generated:
    return {}
  made = workdir.generated(names.student) / MANIFEST
  source, settings = _teacher(config, workdir), _settings(config)
  return {
    GENERATED: made,
    STAGE: lambda: source.as_configured(settings, made, STAGE, _idle(settings)),
  }


def _teacher(config, workdir: Workdir) -> ModelRef:
  return ModelRef.of_role(TEACHER, config.teacher, workdir)


def _settings(config) -> dict[str, object]:
  c, train = config.seqkd, config.train
  return {
    "prompt_tokens": prompt_tokens(config),
    "temperature": c.temperature,
    "top_p": c.top_p,
    "seed": c.seed,
    "dtype": c.dtype,
    "rows": c.rows or train.steps * train.batch_size,
    "shuffle": train.shuffle,
    "batch_size": c.batch_size,
    "rows_per_part": c.rows_per_part,
    "max_length": config.corpus.max_length,
    "eos_token": config.corpus.eos_token,
  }


def _idle(settings) -> tuple[str, ...]:
  """Without a temperature nothing is drawn."""
  return () if settings["temperature"] else ("seed", "top_p")


def prompt_tokens(config) -> int:
  """Ids of a prompt, of a row's `max_length`."""
  return round(config.seqkd.prompt_share * config.corpus.max_length)


def _step(config, workdir: Workdir, names) -> Step:
  directory = workdir.generated(names.student)
  settings, source = _settings(config), _teacher(config, workdir)
  prompt = settings["prompt_tokens"]
  return Step(
    stage=STAGE,
    manifest=directory / MANIFEST,
    settings=settings,
    idle=_idle(settings),
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      "selection": workdir.selection(names.selection) / MANIFEST,
      "weights": source.as_input(),
    },
    outputs=(directory,),
    code=Version(_CODE, ("jax",), config.run.any_code),
    summary=f"{source.name} {source.origin} goes on after the "
    f"first {prompt:,} tokens of up to {settings['rows']:,} rows of selection "
    f"{names.selection} until there are {config.corpus.max_length + 1:,}, "
    f"{settings['dtype']}",
    run=lambda inputs: _run(config, source, directory, inputs),
  )


def _chosen(settings, kept):
  """The rows that training will take: it reads them in order, or shuffled."""
  import numpy as np

  most = min(settings["rows"], len(kept))
  if not settings["shuffle"]:
    return kept[:most]
  return kept[np.arange(most) * len(kept) // most]  # from all of the corpus


def _run(config, source, directory, inputs):
  from miniplm_jax.corpus import columns, store
  from miniplm_jax.distillation.seqkd_rows import Continuation
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.training import flops

  c, run = config.seqkd, config.run
  corpus = store.Corpus(inputs["corpus"])
  corpus.check_tokenizer()
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  model = source.load_as_scored(corpus, mesh, c.dtype)
  continuation = Continuation(model, corpus, mesh, c, prompt_tokens(config))
  settings, weights = _settings(config), huggingface.weights_fingerprint(model)
  idle = *_idle(settings), "batch_size"  # a row's id seeds its draws
  kept = {k: v for k, v in settings.items() if k not in idle}
  by = manifest.made_by(kept, inputs, weights=weights)
  rows = _chosen(settings, kept_rows(inputs["selection"]))
  size = c.rows_per_part
  units = [rows[i : i + size] for i in range(0, len(rows), size)]
  parts = len(units) + 1  # the last are the held-out rows
  names = [store.shard_names(i, parts) for i in range(parts)]

  def make(i: int, progress):
    counts = collections.Counter()
    if i < len(units):
      instances = continuation.rows(units[i], i, counts, progress)
    else:
      instances = continuation.copies(corpus.rows_of("heldout"), i, counts)
    shard = directory, names[i], list(instances), counts
    return functools.partial(store.write_shard, *shard, {columns.MADE_BY: by})

  pieces.fill(
    STAGE,
    [*map(len, units), 0],  # the held-out rows are no work
    lambda i: store.has(directory, names[i], by),
    make,
    run.log_every_seconds,
  )

  def merged():
    corpus.check_tokenizer()
    for path in (corpus.directory / "tokenizer").iterdir():
      files.write_bytes(directory / "tokenizer" / path.name, path.read_bytes())
    return store.merge(directory, parts, by)

  counts, described = hosts.agree(merged)
  cost = counts.pop("flops", 0)
  _say(counts, cost)
  same = ("eos_id", "vocab_size", "bos_id", "bos_token")
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": weights,
    "files": described,
    "counts": counts,
    "details": {
      **{name: corpus.manifest.details.get(name) for name in same},
      flops.OFFLINE: {"generation by the teacher": float(cost)},
    },
  }


def _say(counts, cost):
  n, total = counts.get("rows_continued", 0), counts.get("split train", 0)
  log(
    STAGE,
    f"{n:,} of {total:,} rows have {counts.get('new_tokens', 0):,} new tokens, "
    f"{counts.get('rows_ended', 0):,} ended early, the others were too short; "
    f"{cost:.2e} FLOPs",
  )
