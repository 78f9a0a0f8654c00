"""The corpus as registered seqio Tasks: packed, scored and refined.

  from miniplm_jax.selection import tasks
  name = tasks.register("runs/demo", "miniplm")
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    sequence_length=None, split="train", shuffle=False)

Difference Sampling's filter is a preprocessor that joins by row id. Imports
TensorFlow: nothing imports this module before it is used.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping

import numpy as np
from etils import epath

from miniplm_jax import criteria
from miniplm_jax.core import gs
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.criteria import formula
from miniplm_jax.models.ref import ROLES
from miniplm_jax.scoring import table
from miniplm_jax.scoring.units import range_of
from miniplm_jax.selection.source import FEATURES, PackedSource
from miniplm_jax.selection.with_seqio import seqio, tf

# What `join_scores` adds.
SCORES = {
  **{f"{role}_nll": tf.float32 for role in ROLES},
  **{f"{role}_tokens": tf.int32 for role in ROLES},
  "score": tf.float32,
}
_CHUNK = 1 << 20  # selected rows that are marked at a time
_BITMAPS = 4  # selections whose bits stay in memory
_PARTS = 64  # of each score table in memory, 1 MB a part
_D = "train"  # the split that is scored and selected from

# (workdir, selection) that each name stands for.
_owners: dict[str, tuple[str, str]] = {}


# ---- preprocessors


def keep_selected(
  dataset: tf.data.Dataset, selection: str, rows: int
) -> tf.data.Dataset:
  """Difference Sampling's filter: the examples whose row id was selected.

  One bit for each of the corpus's rows, 125 MB for 10⁹, of which all tasks of a
  selection, by its manifest file, share one copy; no Python by row.
  """
  fingerprint = manifest_lib.require(selection).fingerprint
  bitmap = _bitmap(selection, fingerprint, rows)

  def is_kept(example):
    row_id = example["row_id"]
    bit = tf.cast(row_id % 8, tf.uint8)
    shifted = tf.bitwise.right_shift(bitmap[row_id // 8], bit)
    return tf.bitwise.bitwise_and(shifted, 1) == 1

  return dataset.filter(is_kept)


@functools.lru_cache(_BITMAPS)
def _bitmap(selection: str, fingerprint: str, rows: int) -> tf.Tensor:
  """uint8 [rows // 8 + 1]: the bit of each selected row is 1."""
  del fingerprint  # it tells what stands in `selection` now
  kept = kept_rows(manifest_lib.require(selection))
  bits = np.zeros(rows // 8 + 1, np.uint8)
  for start in range(0, len(kept), _CHUNK):
    row_id = kept[start : start + _CHUNK]
    bit = np.uint8(1) << (row_id % 8).astype(np.uint8)
    np.bitwise_or.at(bits, row_id // 8, bit)
  with tf.init_scope():  # a value, whatever is being traced
    return tf.constant(bits)


def join_scores(
  dataset: tf.data.Dataset, tables: Mapping[str, str]
) -> tf.data.Dataset:
  """Adds `SCORES` of the same row id: nats, tokens scored, mean_diff.

  Tables are manifest files by role. In corpus order each part of a table is
  read once; of shuffled examples the parts that were used last are kept.
  """
  opened = {
    role: _ScoreLookup(manifest_lib.require(path))
    for role, path in tables.items()
  }
  score = formula.Evaluator(criteria.CRITERIA["mean_diff"].formula, seed=0)

  def look_up(row_id):
    columns = {}
    for role, lookup in opened.items():
      nll, tokens = lookup.look_up(row_id)
      columns[f"{role}_nll"], columns[f"{role}_tokens"] = nll, tokens
    columns["score"] = score(columns)
    return [columns[n].astype(t.as_numpy_dtype) for n, t in SCORES.items()]

  def one(example):
    values = tf.numpy_function(
      look_up, [example["row_id"]], list(SCORES.values()), stateful=False
    )
    for value in values:
      value.set_shape([])
    return example | dict(zip(SCORES, values))

  return dataset.map(one, num_parallel_calls=1, deterministic=True)


class _ScoreLookup:
  """A score table, by row id, some parts of it at a time."""

  def __init__(self, manifest: Manifest):
    self._manifest, self._names = manifest, list(manifest.files)
    self._firsts = np.array([range_of(name)[0] for name in self._names])
    self._part = functools.lru_cache(_PARTS)(self._read)

  def _read(self, i: int) -> table.Columns:
    name = self._names[i]
    one = dataclasses.replace(
      self._manifest, files={name: self._manifest.files[name]}
    )
    (columns,) = table.parts(one)
    return columns

  def look_up(self, row_id):
    """nll_sum and n_tokens of a row."""
    part = int(np.searchsorted(self._firsts, row_id, "right")) - 1
    columns = self._part(max(part, 0))
    i = int(np.searchsorted(columns["row_id"], row_id))
    if row_id not in columns["row_id"][i : i + 1]:
      raise UserError(
        f"row {row_id} has no score",
        str(self._manifest.path),
        "score the corpus that the tasks read",
      )
    return columns["nll_sum"][i], columns["n_tokens"][i]


# ---- tasks


def packed_task(name: str, corpus: Manifest) -> seqio.Task:
  """Every row of a corpus; its splits are the corpus's."""
  return _task(name, PackedSource(corpus.directory), corpus, [])


def scored_task(
  name: str, corpus: Manifest, tables: Mapping[str, Manifest]
) -> seqio.Task:
  """Every row of D with `SCORES`, of tables by role."""
  paths = {role: os.fspath(scores.path) for role, scores in tables.items()}
  steps = [functools.partial(join_scores, tables=paths)]
  return _task(name, _source_of_d(corpus), corpus, steps, SCORES)


def refined_task(
  name: str,
  corpus: Manifest,
  selection: Manifest,
  domain: str | None = None,
) -> seqio.Task:
  """The rows of D that were selected, all or those of a domain."""
  step = functools.partial(
    keep_selected,
    selection=os.fspath(selection.path),
    rows=corpus.counts["rows"],
  )
  n = selection.counts["domains"][domain]["rows"] if domain else None
  return _task(name, _source_of_d(corpus, domain, n), corpus, [step])


def _source_of_d(corpus: Manifest, domain: str | None = None, n: int = 0):
  n = n or corpus.counts[f"split {_D}"]
  return PackedSource(corpus.directory, domain, {_D: n})


def _task(name, source, corpus, steps, more=()):
  def passed(dtype, rank):
    vocabulary = seqio.PassThroughVocabulary(1)
    return seqio.Feature(vocabulary, add_eos=False, rank=rank, dtype=dtype)

  features = {name: passed(*kind) for name, kind in FEATURES.items()}
  features |= {name: passed(dtype, 0) for name, dtype in dict(more).items()}
  features["targets"] = seqio.Feature(
    seqio.PassThroughVocabulary(
      corpus.details["vocab_size"], eos_id=corpus.details["eos_id"]
    ),
    add_eos=False,
  )
  return seqio.Task(
    name,
    source=source,
    preprocessors=[*steps, seqio.CacheDatasetPlaceholder()],
    output_features=features,
    # The source shuffles.
    shuffle_buffer_size=None,
  )


# ---- registry


def _word(text: str) -> str:
  return re.sub(r"\W", "_", text)


def register_corpus(workdir: epath.PathLike, name: str = "miniplm") -> str:
  """Registers the packed corpus of a workdir as NAME_packed, and returns that.

  Raises:
    UserError: there is no corpus, or the name stands for another one.
  """
  root = Workdir(gs.absolute(workdir))  # wherever the program goes
  corpus = manifest_lib.require(root.corpus / MANIFEST)
  task = packed_task(f"{_word(name)}_packed", corpus)
  _add((os.fspath(root.root), ""), [task])
  return task.name


def register(
  workdir: epath.PathLike,
  selection: str,
  name: str = "",
  rates: Mapping[str, float] | None = None,
) -> str:
  """Registers a finished selection, and what it was made from.

  NAME is the refined corpus, NAME_packed every row, NAME_scored every row of
  D with its scores, unless it was selected by the proxy, for which teacher and
  reference need not have scored every row; NAME_domain_DOMAIN is one domain
  of the refined corpus, NAME_by_domain the Mixture of them. An epoch of the
  Mixture has every selected row once.

  Args:
    name: to register it under; "" is miniplm_SELECTION.
    rates: of the domains in the Mixture; by default their selected rows.
      Domains that are not named are left out.

  Returns:
    The refined task's name, for `seqio.get_mixture_or_task`.

  Raises:
    UserError: there is no such selection, what it was made from has changed,
      or the name stands for another one.
  """
  name = _word(name or f"miniplm_{selection}")
  root = Workdir(gs.absolute(workdir))  # wherever the program goes
  manifest = manifest_lib.require(root.selection(selection) / MANIFEST)
  corpus = manifest_lib.require(root.corpus / MANIFEST)
  tables = {
    role: manifest_lib.require(root.scores(model) / MANIFEST)
    for role, model in manifest.settings["scores"].items()
  }
  manifest.check_inputs({"corpus": corpus, **tables})
  domains = _domain_names(name, manifest, rates)
  tasks = [
    refined_task(name, corpus, manifest),
    packed_task(f"{name}_packed", corpus),
  ]
  if set(ROLES) <= set(tables):
    tasks.append(scored_task(f"{name}_scored", corpus, tables))
  by_domain = [
    refined_task(n, corpus, manifest, d) for d, (n, _) in domains.items()
  ]
  mixture = seqio.Mixture(
    f"{name}_by_domain",
    [(task, rate) for task, (_, rate) in zip(by_domain, domains.values())],
    # One epoch is every row once; without end the rates hold.
    sample_fn=functools.partial(
      tf.data.Dataset.sample_from_datasets, stop_on_empty_dataset=False
    ),
  )
  _add((os.fspath(root.root), selection), [*tasks, *by_domain, mixture])
  return name


def _domain_names(name, selection, rates) -> dict[str, tuple[str, float]]:
  """Domain → its task's name and its rate."""
  kept = {d: c["kept"] for d, c in selection.counts["domains"].items()}
  rates = {d: n for d, n in kept.items() if n} if rates is None else rates
  tasks = {}
  for domain, rate in rates.items():
    if not kept.get(domain) or not rate > 0:
      raise UserError(
        f"rate {rate} of domain {domain}, which has {kept.get(domain, 0)} "
        "selected rows",
        str(selection.path),
        f"give numbers above 0 for some of {', '.join(kept)}",
      )
    task = f"{name}_domain_{_word(domain)}"
    while task in (n for n, _ in tasks.values()):
      task += "_"  # two domains that differ in signs alone
    tasks[domain] = task, float(rate)
  return tasks


def _add(
  owner: tuple[str, str], providers: Iterable[seqio.Task | seqio.Mixture]
):
  """Adds them to seqio's registries, in place of the same owner's."""
  for provider in providers:
    known = _owners.get(provider.name, owner)
    if known != owner:
      raise UserError(
        f"{provider.name} is registered for {' '.join(known)} already",
        " ".join(owner),
        "give another name=",
      )
  for provider in providers:
    _owners[provider.name] = owner
    is_task = isinstance(provider, seqio.Task)
    registry = seqio.TaskRegistry if is_task else seqio.MixtureRegistry
    registry.remove(provider.name)
    registry.add_provider(provider.name, provider)
