"""The refined corpus as a registered seqio Task; the filter is its step.

  from miniplm_jax.select import tasks
  name = tasks.register("runs/demo", "miniplm")
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    sequence_length=None, split="train", shuffle=False)

Imports TensorFlow: nothing imports this module before it is used.
"""

import functools
import re
from collections.abc import Iterator

import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.select.scored import ScoredRows
from miniplm_jax.select.stage import kept_rows


class ScoreSource(seqio.DataSource):
  """Chunks of (row_id [n], score [n]), one a score part, in row order."""

  def __init__(self, scored: ScoredRows):
    self._scored = scored
    super().__init__(
      splits=("train",), num_input_examples={"train": scored.parts}
    )

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """A shard takes every n-th part, for any n."""
    return True

  def list_shards(self, split: str) -> list[str]:
    """One shard a part."""
    return [str(i) for i in range(self._scored.parts)]

  def get_dataset(
    self, split="train", shuffle=False, seed=None, shard_info=None, **unused
  ) -> tf.data.Dataset:
    """See base class; order is that of the corpus, so nothing shuffles."""

    def generate():
      for columns in self._scored.columns():
        yield {name: columns[name] for name in ("row_id", "score")}

    spec = {
      "row_id": tf.TensorSpec([None], tf.int64),
      "score": tf.TensorSpec([None], tf.float32),
    }
    dataset = tf.data.Dataset.from_generator(generate, output_signature=spec)
    if shard_info is not None:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    return dataset


def keep(dataset: tf.data.Dataset, rows: np.ndarray) -> tf.data.Dataset:
  """Difference Sampling's filter: the kept rows, by chunk."""

  def one(chunk):
    kept = tf.numpy_function(
      lambda row_id: np.isin(row_id, rows), [chunk["row_id"]], tf.bool
    )
    kept.set_shape([None])
    return {k: tf.boolean_mask(v, kept) for k, v in chunk.items()}

  return dataset.map(one, num_parallel_calls=1, deterministic=True)


def read_instances(dataset: tf.data.Dataset, corpus: Corpus) -> tf.data.Dataset:
  """Kept rows → their instances, one at a time, read by random access."""

  def read(row_id):
    (instance,) = corpus.read([int(row_id)])
    return instance.ids.astype(np.int32), instance.domain.encode()

  def one(row):
    targets, domain = tf.numpy_function(
      read, [row["row_id"]], [tf.int32, tf.string]
    )
    targets.set_shape([None])
    domain.set_shape([])
    return row | {"targets": targets, "domain": domain}

  return dataset.unbatch().map(one, num_parallel_calls=1, deterministic=True)


def add_tasks(name: str, scored: ScoredRows, rows: np.ndarray, corpus: Corpus):
  """Registers `name` and `name`_row_ids, replacing earlier ones.

  `name` yields instances: `targets` int32, `row_id`, `domain`, `score`.
  `name`_row_ids yields the kept ids in chunks, without reading the corpus.
  """
  filtering = functools.partial(keep, rows=rows)
  vocabulary = seqio.PassThroughVocabulary(
    corpus.manifest.details["vocab_size"], eos_id=corpus.eos_id
  )
  for task, steps, features in (
    (
      name,
      [filtering, functools.partial(read_instances, corpus=corpus)],
      {
        "targets": seqio.Feature(vocabulary, add_eos=False),
        "row_id": _passed(0, tf.int64),
        "domain": _passed(0, tf.string),
        "score": _passed(0, tf.float32),
      },
    ),
    (f"{name}_row_ids", [filtering], {"row_id": _passed(1, tf.int64)}),
  ):
    seqio.TaskRegistry.remove(task)
    seqio.TaskRegistry.add(
      task,
      source=ScoreSource(scored),
      preprocessors=steps,
      output_features=features,
      # The order is the corpus's; a trainer that wants another shuffles.
      shuffle_buffer_size=None,
    )


def _passed(rank: int, dtype) -> seqio.Feature:
  return seqio.Feature(
    seqio.PassThroughVocabulary(1), add_eos=False, rank=rank, dtype=dtype
  )


def kept_row_ids(name: str) -> Iterator[np.ndarray]:
  """int64 row ids that the registered task keeps, in corpus order."""
  task = seqio.get_mixture_or_task(f"{name}_row_ids")
  dataset = task.get_dataset(
    sequence_length=None, split="train", shuffle=False, try_in_mem_cache=False
  )
  for chunk in dataset.as_numpy_iterator():
    yield chunk["row_id"]


def task_name(selection: str) -> str:
  """The name that a selection is registered under."""
  return "miniplm_" + re.sub(r"\W", "_", selection)


def register(workdir: epath.PathLike, selection: str) -> str:
  """Registers the refined corpus of a finished selection.

  Args:
    workdir: of the run.
    selection: a folder of selection/.

  Returns:
    The task's name, for `seqio.get_mixture_or_task`.

  Raises:
    UserError: there is no such selection, or what it was made from has
      changed.
  """
  layout = Workdir(epath.Path(workdir))
  found = manifest_lib.require(layout.selection(selection) / MANIFEST)
  folders = {"corpus": layout.corpus}
  for role, model in found.settings["scores"].items():
    folders[role] = layout.scores(model)
  inputs = {
    name: manifest_lib.require(folder / MANIFEST)
    for name, folder in folders.items()
  }
  found.check_inputs(inputs)
  corpus = Corpus(inputs.pop("corpus"))
  scored = ScoredRows(
    inputs, found.settings["definition"], found.settings["seed"], corpus
  )
  name = task_name(selection)
  add_tasks(name, scored, kept_rows(found), corpus)
  return name
