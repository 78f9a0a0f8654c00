"""Stage materialize: a selection's rows as files, for other programs.

Written shard by shard; a killed run goes on with the next shard.
"""

from collections.abc import Iterator

from etils import epath, epy

from miniplm_jax.config import RunConfig
from miniplm_jax.core import files, pieces
from miniplm_jax.core.code import Version
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus.kept_rows import kept_rows

with epy.lazy_imports():
  from miniplm_jax.corpus import store
  from miniplm_jax.selection import materialize_writers as writers

STAGE = "materialize"
_CODE = ("selection/materialize_writers.py",)  # makes a shard
_ROWS = 1_000_000  # of a shard, as in the released data


def step(
  form: str, selection: epath.Path, corpus: epath.Path, run: RunConfig
) -> Step:
  """The step that writes the rows of a selection, by folder, in a format.

  The form of the files is a key of `materialize_writers.FORMATS`.
  """
  folder = selection / "materialized"
  return Step(
    stage=STAGE,
    manifest=folder / MANIFEST,
    settings={"format": form, "rows_per_shard": _ROWS},
    inputs={"corpus": corpus, "selection": selection / MANIFEST},
    outputs=(folder,),
    code=Version(_CODE, (), run.any_code),
    summary=f"rows as {form} of selection",
    subject=selection.name,
    run=lambda inputs: _run(form, folder, run.log_every_seconds, inputs),
    policy=Policy(is_host_only=True),
  )


def _run(form: str, folder: epath.Path, every: float, inputs):
  corpus, kept = store.Corpus(inputs["corpus"]), kept_rows(inputs["selection"])
  shards = [kept[i : i + _ROWS] for i in range(0, len(kept), _ROWS)]
  sizes = list(map(len, shards))
  writer = writers.FORMATS[form](folder, sizes, corpus)

  def make(i, progress):
    rows = _rows(corpus, shards[i], progress)
    return lambda: writer.write(i, shards[i], rows)

  pieces.fill(STAGE, sizes, writer.has, make, every)
  writer.finish()
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "counts": {"rows": len(kept), "shards": len(shards)},
    "files": {
      path.name: files.describe(path)
      for path in sorted(folder.iterdir())
      if not path.name.startswith(("manifest.", "."))
    },
  }


def _rows(corpus, row_ids, progress) -> Iterator:
  for row in store.read_each(corpus, row_ids):
    yield row
    progress(1)
