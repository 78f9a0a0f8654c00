"""Stage materialize: a selection's rows as files, for other programs.

They are read through the refined corpus's seqio Task, whose filter chooses
them. Written shard by shard; a killed run goes on with the next shard.
"""

from collections.abc import Iterator

from etils import epath, epy

from miniplm_jax.config import RunConfig
from miniplm_jax.core import files
from miniplm_jax.core.code import Version
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus.kept_rows import kept_rows

with epy.lazy_imports():  # TensorFlow, 7 s
  from miniplm_jax.selection import materialize_writers as writers
  from miniplm_jax.selection import source, tasks

STAGE = "materialize"
_CODE = (  # makes a shard
  "selection/materialize_writers.py",
  "selection/source.py",
)
_ROWS = 1_000_000  # of a shard, as in the released data
_STEP = 1000  # rows between words of progress


def step(
  form: str, selection: epath.Path, corpus: epath.Path, run: RunConfig
) -> Step:
  """The step that writes the rows of a selection.

  Args:
    form: of the files, a key of `materialize_writers.FORMATS`.
    selection: its folder.
    corpus: the manifest of the rows.
    run: how it is carried out.
  """
  folder = selection / "materialized"
  return Step(
    stage=STAGE,
    manifest=folder / MANIFEST,
    settings={"format": form, "rows_per_shard": _ROWS},
    inputs={"corpus": corpus, "selection": selection / MANIFEST},
    outputs=(folder,),
    code=Version(_CODE, (), run.any_code),
    summary=f"the rows of selection {selection.name} as {form}",
    run=lambda inputs: _run(form, folder, run.log_every_seconds, inputs),
    policy=Policy(is_host_only=True),
  )


def _run(form: str, folder: epath.Path, every: float, inputs):
  corpus, selection = inputs["corpus"], inputs["selection"]
  kept = kept_rows(selection)
  task = tasks.refined_task("materialize", corpus, selection)
  shards = [kept[i : i + _ROWS] for i in range(0, len(kept), _ROWS)]
  writer = writers.FORMATS[form](folder, [len(s) for s in shards], corpus)
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
      for path in sorted(folder.iterdir())
      if not path.name.startswith(("manifest.", "."))
    },
  }


def _rows(task, row_ids, progress) -> Iterator:
  """What the task gives in the place of these rows: these and no other."""
  # The rest of D need not be read.
  split = task.source.slice_of("train", row_ids[0], row_ids[-1])
  dataset = task.get_dataset(
    sequence_length=None, split=split, shuffle=False, try_in_mem_cache=False
  )
  written = 0
  for row_id, instance in source.instances(dataset):
    if written == len(row_ids) or row_id != row_ids[written]:
      break
    written += 1
    yield row_id, instance
    if written % _STEP == 0:
      progress.update(_STEP)
  else:
    if written == len(row_ids):
      progress.update(written % _STEP)
      return
  raise UserError(
    f"the task {task.name} does not give the selected rows from number "
    f"{written} on",
    task.source.directory,
    "select again with --stages=select --force",
  )
