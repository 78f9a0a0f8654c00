"""Stage materialize: a selection's rows as files, for other programs.

They are read through the refined corpus's seqio Task, whose filter chooses
them. Written shard by shard; a killed run goes on with the next shard.
"""

from collections.abc import Iterator

from miniplm_jax.core import files
from miniplm_jax.core.code import Version
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST, Workdir

STAGE = "materialize"
_CODE = ("select/materialize_writers.py", "select/source.py")  # makes a shard
_ROWS = 1_000_000  # of a shard, as in the released data
_STEP = 1000  # rows between words of progress


def steps(config, workdir: Workdir) -> list[Step]:
  """One step a selection; none if nothing is to be written."""
  form = config.materialize.format
  if form == "none":
    return []
  found = {}
  for method in config.methods:
    name = config.names_of(method).selection
    found[name] = _step(config, workdir, name, form)
  return list(found.values())


def _step(config, workdir: Workdir, name: str, form: str) -> Step:
  selection = workdir.selection(name)
  directory = selection / "materialized"
  return Step(
    stage=STAGE,
    manifest=directory / MANIFEST,
    settings={"format": form, "rows_per_shard": _ROWS},
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      "selection": selection / MANIFEST,
    },
    outputs=(directory,),
    code=Version(_CODE, (), config.run.any_code),
    summary=f"the rows of selection {name} as {form}",
    run=lambda inputs: _run(config, form, directory, inputs),
    policy=Policy(is_host_only=True),
  )


def _run(config, form, directory, inputs):
  # They bring TensorFlow, 7 s.
  from miniplm_jax.corpus.kept_rows import kept_rows
  from miniplm_jax.select import materialize_writers as writers
  from miniplm_jax.select import tasks

  corpus, selection = inputs["corpus"], inputs["selection"]
  kept = kept_rows(selection)
  task = tasks.refined_task("materialize", corpus, selection)
  shards = [kept[i : i + _ROWS] for i in range(0, len(kept), _ROWS)]
  writer = writers.FORMATS[form](directory, [len(s) for s in shards], corpus)
  every = config.run.log_every_seconds
  with Progress(STAGE, len(kept), "rows", every=every) as progress:
    for number, row_ids in enumerate(shards):
      if not writer.has(number):
        writer.write(number, _rows(task, row_ids, progress))
      else:
        progress.update(len(row_ids))
  writer.finish()
  return {
    "tokenizer": corpus.tokenizer,
    "counts": {"rows": len(kept), "shards": len(shards)},
    "files": {
      path.name: files.describe(path)
      for path in sorted(directory.iterdir())
      if not path.name.startswith(("manifest.", "."))
    },
  }


def _rows(task, row_ids, progress) -> Iterator:
  """What the task gives in the place of these rows: these and no other."""
  from miniplm_jax.select import source

  # The rest of D need not be read.
  split = task.source.slice_of("train", row_ids[0], row_ids[-1])
  dataset = task.get_dataset(
    sequence_length=None, split=split, shuffle=False, try_in_mem_cache=False
  )
  seen = 0
  for row_id, instance in source.instances(dataset):
    if seen == len(row_ids) or row_id != row_ids[seen]:
      break
    seen += 1
    yield row_id, instance
    if seen % _STEP == 0:
      progress.update(_STEP)
  else:
    if seen == len(row_ids):
      progress.update(seen % _STEP)
      return
  raise UserError(
    f"the task {task.name} does not give the selected rows from number "
    f"{seen} on",
    task.source.directory,
    "select again with --stages=select --force",
  )
