"""The corpus as seqio Tasks and as files; all tests that load TensorFlow."""

import collections
import dataclasses
import itertools
import os
import pickle
import shlex
import subprocess
import sys
import types

import numpy as np
import pyarrow.parquet as pq
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from helpers import (
  CONFIG,
  LIMIT,
  ROOT,
  documented,
  edited,
  environment,
  execute,
  refused,
  run,
  typed,
)

from miniplm_jax.core import execute as execute_lib
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus import megatron
from miniplm_jax.corpus.store import Corpus, StoredRow
from miniplm_jax.pipeline import Stages
from miniplm_jax.selection import converter, materialize_step, source, tasks
from miniplm_jax.selection import materialize_writers as writers


@pytest.fixture
def name(finished):
  return tasks.register(finished / "run", "miniplm", name="tiny")


@pytest.fixture
def corpus(finished):
  return Corpus(manifest_lib.read(finished / "run/corpus/manifest.json"))


@pytest.fixture
def kept(finished):
  return np.load(finished / "run/selection/miniplm/rows.npy")


def read(name, **options):
  options = {"split": "train", "shuffle": False} | options
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    sequence_length=None, try_in_mem_cache=False, **options
  )
  return list(dataset.as_numpy_iterator())


def scores(finished, role, row_ids):
  """nll_sum and n_tokens of some rows, by plain pyarrow."""
  parts = sorted((finished / "run/scores" / role).glob("*.parquet"))
  assert len(parts) > 2
  table = pq.read_table(parts)
  place = {row_id: i for i, row_id in enumerate(table["row_id"].to_pylist())}
  rows = table.take([place[row_id] for row_id in row_ids])
  return rows["nll_sum"].to_numpy(), rows["n_tokens"].to_numpy()


def ids(examples):
  return [int(e["row_id"]) for e in examples]


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_the_filter_keeps_the_selected_rows_in_any_shards(name, kept, shards):
  """Also the shards, one after another, are the whole."""
  found = [
    row_id
    for i in range(shards)
    for row_id in ids(read(name, shard_info=seqio.ShardInfo(i, shards)))
  ]
  np.testing.assert_array_equal(found, kept)


def test_examples_are_the_rows_with_all_that_is_known_of_them(
  name, corpus, kept
):
  known = {f.name for f in dataclasses.fields(StoredRow)} - {"ids"}
  # of a converted corpus, from which none is selected; of the index alone
  known -= {"source_rows", "more", "has_own_split"}
  assert set(source.FEATURES) == known | {"row_id", "targets"}
  found = read(name)
  assert ids(found) == kept.tolist()
  for example, wanted in zip(found, corpus.read(kept)):
    row = StoredRow(
      ids=example["targets"],
      domain=example["domain"].decode(),
      split=example["split"].decode(),
      documents=tuple(example["documents"].tolist()),
      hash=int(example["hash"]) % 2**64,
      **{k: int(example[k]) for k in ("part", "offset", "n_bytes")},
    )
    assert row.to_bytes() == wanted.to_bytes()
  # A hash of the upper half, which TensorFlow has no number for.
  assert min(example["hash"] for example in found) < 0


def test_packed_has_every_row_once_in_its_split(name, corpus):
  task = seqio.get_mixture_or_task(f"{name}_packed")
  assert set(task.splits) == {"train", "reference", "heldout", "teacher"}
  seen = []
  for split in task.splits:
    examples = read(task.name, split=split)
    assert {e["split"].decode() for e in examples} == {split}
    assert task.num_input_examples(split) == len(examples)
    np.testing.assert_array_equal(ids(examples), corpus.rows_of(split))
    seen += ids(examples)
  assert sorted(seen) == list(range(len(corpus)))


def test_slices_and_shuffling_of_the_source(name, corpus):
  """A permutation by seed, before it is sharded; a slice like TFDS's."""
  packed, d = f"{name}_packed", corpus.rows_of("train").tolist()
  assert ids(read(packed, split="train[10:20]")) == d[10:20]
  assert ids(read(packed, split="train[550:]")) == d[550:]
  with pytest.raises(UserError, match="no split validation"):
    read(packed, split="validation")
  mixed = ids(read(packed, shuffle=True, seed=3))
  assert sorted(mixed) == d
  assert np.corrcoef(mixed, d)[0, 1] < 0.2
  assert mixed == ids(read(packed, shuffle=True, seed=3))
  assert mixed != ids(read(packed, shuffle=True, seed=4))
  shards = [
    ids(read(packed, shuffle=True, seed=3, shard_info=seqio.ShardInfo(i, 3)))
    for i in range(3)
  ]
  assert list(itertools.chain(*shards)) == mixed


def test_the_source_is_small_where_it_is_sent(name):
  task = seqio.get_mixture_or_task(f"{name}_domain_even")
  read(task.name)  # it has opened everything
  sent = pickle.dumps(task.source)
  assert len(sent) < 2000
  again = pickle.loads(sent).get_dataset("train", shuffle=False)
  assert len(list(again)) == task.num_input_examples("train")


@pytest.mark.parametrize("shuffle", [False, True])
def test_scores_are_joined_by_row_id(name, finished, corpus, shuffle):
  found = read(f"{name}_scored", shuffle=shuffle, seed=1)
  assert sorted(ids(found)) == corpus.rows_of("train").tolist()
  mean = {}
  for role in ("teacher", "reference"):
    nll, tokens = scores(finished, role, ids(found))
    np.testing.assert_array_equal([e[f"{role}_nll"] for e in found], nll)
    np.testing.assert_array_equal([e[f"{role}_tokens"] for e in found], tokens)
    mean[role] = nll / tokens
  np.testing.assert_allclose(
    [e["score"] for e in found],
    mean["reference"] - mean["teacher"],
    atol=2e-6,
  )


def test_a_row_without_a_score_is_not_made_up(name, finished):
  tables = {
    role: str(finished / "run/scores" / role / "manifest.json")
    for role in ("teacher", "reference")
  }
  packed = seqio.get_mixture_or_task(f"{name}_packed")
  heldout = packed.get_dataset(None, split="heldout", shuffle=False)
  with pytest.raises(tf.errors.UnknownError, match="has no score"):
    next(tasks.join_scores(heldout, tables).as_numpy_iterator())


def test_an_epoch_of_the_mixture_is_the_refined_corpus(name, corpus, kept):
  mixture = seqio.MixtureRegistry.get(f"{name}_by_domain")
  found = read(mixture.name, num_epochs=1)
  assert sorted(ids(found)) == kept.tolist() != ids(found)
  wanted = collections.Counter(corpus.domains(kept))
  assert collections.Counter(e["domain"].decode() for e in found) == wanted
  assert len(wanted) == 2
  for domain, n in wanted.items():
    task = seqio.TaskRegistry.get(f"{name}_domain_{domain}")
    assert mixture.get_rate(task) == n
    assert {e["domain"].decode() for e in read(task.name)} == {domain}


def test_all_tasks_of_a_process_share_one_index_and_one_selection(
  finished, kept, monkeypatch
):
  opened = []
  for module, name in ((source, "Corpus"), (tasks, "kept_rows")):
    original = getattr(module, name)

    def counted(made, original=original, name=name):
      opened.append(name)
      return original(made)

    monkeypatch.setattr(module, name, counted)
  for cached in (source._open, source._rows, tasks._bitmap):
    cached.cache_clear()
  name = tasks.register(finished / "run", "miniplm", name="shared")
  assert sorted(ids(read(f"{name}_by_domain", num_epochs=1))) == kept.tolist()
  for suffix in ("", "_packed", "_scored", "_domain_odd", "_domain_even"):
    assert read(name + suffix)
  assert sorted(opened) == ["Corpus", "kept_rows"]


def test_a_selection_by_the_proxy_has_no_scored_task(copy, kept):
  path = copy / "run/selection/miniplm/manifest.json"
  with edited(path) as body:
    body["settings"]["scores"] = {"proxy": "teacher"}
    body["inputs"]["proxy"] = body["inputs"].pop("teacher")
    del body["inputs"]["reference"]
  name = tasks.register(copy / "run", "miniplm", name="by_proxy")
  assert f"{name}_scored" not in seqio.TaskRegistry.names()
  assert ids(read(name)) == kept.tolist()
  assert sorted(ids(read(f"{name}_by_domain", num_epochs=1))) == kept.tolist()


def test_rates_of_the_mixture_can_be_given(finished):
  where = finished / "run"
  rates = {"even": 9, "odd": 1}
  name = tasks.register(where, "miniplm", name="rated", rates=rates)
  dataset = seqio.MixtureRegistry.get(f"{name}_by_domain").get_dataset(
    None, shuffle=True, seed=1, try_in_mem_cache=False
  )
  found = [e["domain"] for e in dataset.take(500).as_numpy_iterator()]
  assert 0.86 < found.count(b"even") / 500 < 0.94
  with pytest.raises(UserError, match="rate 1 of domain none"):
    tasks.register(where, "miniplm", name="rated", rates={"none": 1})


def test_a_name_stands_for_one_corpus(finished, copy):
  tasks.register_corpus(finished / "run", "twice")
  assert tasks.register_corpus(finished / "run", "twice") == "twice_packed"
  with pytest.raises(UserError, match="give another name="):
    tasks.register_corpus(copy / "run", "twice")
  name = tasks.register(copy / "run", "pretrain", name="a/b c.d")
  assert len(read(f"{name}_by_domain", num_epochs=1)) == len(read(name))


def test_what_has_changed_is_refused(copy):
  tasks.register(copy / "run", "miniplm", name="changed")
  rows = copy / "run/selection/miniplm/rows.npy"
  np.save(rows, np.load(rows)[1:])
  with pytest.raises(UserError, match="not the file that was written"):
    read("changed")
  path = copy / "run/scores/teacher/manifest.json"
  with edited(path) as body:
    body["settings"]["dtype"] = "other"
  with pytest.raises(UserError, match=r"inputs\.teacher"):
    tasks.register(copy / "run", "miniplm", name="changed")


def test_the_mask_goes_by_position_and_eos_alone():
  """Id 0 is an id; after an eos nothing is predicted; padding counts never."""
  rows = [[5, 0, 7, 9, 0, 0], [0, 9, 9, 3], [4, 0]]
  dataset = tf.data.Dataset.from_generator(
    lambda: ({"targets": row, "documents": row} for row in rows),
    output_signature={
      "targets": tf.TensorSpec([None], tf.int32),
      "documents": tf.TensorSpec([None], tf.int64),
    },
  )
  convert = converter.FeatureConverter(eos_id=9)
  lengths = {"targets": 6}
  dataset = convert(dataset, lengths)
  (batch,) = dataset.batch(3).as_numpy_iterator()
  assert set(batch) == set(convert.get_model_feature_lengths(lengths))
  np.testing.assert_array_equal(
    batch["decoder_loss_weights"],
    [[1, 1, 1, 0, 1], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]],
  )
  np.testing.assert_array_equal(
    batch["decoder_input_tokens"],
    [[5, 0, 7, 9, 0], [0, 9, 9, 3, 9], [4, 0, 9, 9, 9]],
  )
  np.testing.assert_array_equal(
    batch["decoder_target_tokens"],
    [[0, 7, 9, 0, 0], [9, 9, 3, 9, 9], [0, 9, 9, 9, 9]],
  )


def test_the_examples_of_the_docs(demo, finished, kept):
  heading = "Selection as seqio Tasks"
  (code,) = documented("data.md", heading)
  np.testing.assert_array_equal(ids(execute(code)["rows"]), kept)
  (code,) = documented("data.md", "Inputs, targets and the mask")
  batch = execute(code)["batch"]
  assert batch["decoder_input_tokens"].shape == (8, 1024)
  # As many as the teacher scored.
  _, wanted = scores(finished, "teacher", batch["row_id"].tolist())
  weights = batch["decoder_loss_weights"].sum(1)
  np.testing.assert_array_equal(weights, wanted)


def test_caching(demo, kept, tmp_path):
  """As the docs say, in a folder with the user's module."""
  pytest.importorskip("apache_beam")
  (tmp_path / "runs").symlink_to(demo.parent)
  module, command = (
    documented("data.md", "Caching", language)[0]
    for language in ("python", "sh")
  )
  (tmp_path / "my_tasks.py").write_text(module)
  script, *arguments = shlex.split(command)
  assert script == "seqio_cache_tasks"
  path = os.pathsep.join([str(tmp_path), str(ROOT)])
  main = [sys.executable, "-m", "seqio.scripts.cache_tasks_main"]
  subprocess.run(
    [*main, *arguments, "--min_shards=2"],
    cwd=tmp_path,
    env=environment() | {"PYTHONPATH": path},
    check=True,
    timeout=LIMIT,
    capture_output=True,
  )
  execute(module)
  name = "miniplm_miniplm"
  seqio.set_global_cache_dirs([str(tmp_path / "cache")])
  try:
    found = read(name, use_cached=True)
  finally:
    seqio.set_global_cache_dirs([])
  plain = {int(e["row_id"]): e for e in read(name)}
  assert sorted(ids(found)) == kept.tolist()
  for e in found:
    for feature, value in plain[int(e["row_id"])].items():
      np.testing.assert_array_equal(e[feature], value)
      assert np.asarray(e[feature]).dtype == np.asarray(value).dtype


def contents(form, folder, corpus):
  """Ids of the rows of a materialized selection; checks all that it says."""
  if form == "megatron":
    return [
      row
      for index in sorted(folder.glob("*.idx"))
      for row in megatron.IndexedFile(index.with_suffix(""))
    ]
  if form == "tfds":
    rows = tfds.builder_from_directory(folder).as_data_source(split="train")
    kept = [row["row_id"] for row in rows]
    for row, wanted in zip(rows, corpus.read(kept), strict=True):
      assert row["domain"].decode() == wanted.domain
      assert row["documents"].tolist() == list(wanted.documents)
      assert int(row["hash"]) % 2**64 == wanted.hash
    return [row["targets"] for row in rows]
  found = []
  for path in sorted(folder.glob("*.array_record")):
    reader = ArrayRecordReader(str(path))
    found += [StoredRow.from_bytes(record) for record in reader.read_all()]
  index = pq.read_table(sorted(folder.glob("index-*.parquet")))
  assert index["hash"].to_pylist() == [row.hash for row in found]
  kept = corpus.read(index["row_id"].to_numpy())  # of the corpus
  assert [row.hash for row in kept] == [row.hash for row in found]
  return [row.ids for row in found]


@pytest.mark.parametrize("form", ["array_record", "megatron", "tfds"])
def test_materialize(copy, corpus, kept, form, monkeypatch):
  option = f"--config.materialize.format={form}"
  run(copy, "--stages=materialize", option)
  folder = copy / "run/selection/miniplm/materialized"
  wanted = corpus.read(kept)
  found = contents(form, folder, corpus)
  for ids_, row in zip(found, wanted, strict=True):
    np.testing.assert_array_equal(ids_, row.ids)
  if form != "tfds":
    return
  made = manifest_lib.read(folder / "manifest.json")
  assert made.counts == {"rows": len(kept), "shards": 1}
  (copy / "runs").mkdir()
  (copy / "runs/demo").symlink_to(copy / "run")
  monkeypatch.chdir(copy)
  (code,) = documented("data.md", "Selection as files")
  assert len(execute(code)["rows"]) == len(kept)
  assert "skipped" in run(copy, "--stages=materialize", option).stdout
  other = "--config.materialize.format=megatron"
  error = refused(copy, "--stages=materialize", other)
  assert 'settings.format is "tfds" there and "megatron" here' in error


def steps(folder, form):
  config = execute(CONFIG.read_text())["get_config"]()
  config.materialize.format = form
  workdir = Workdir(epath.Path(folder / "run"))
  return Stages(typed(config), workdir).materialize()


@pytest.mark.parametrize("form", writers.FORMATS)
def test_a_killed_materialize_goes_on_with_the_next_shard(
  copy, corpus, kept, form, monkeypatch
):
  monkeypatch.setattr(materialize_step, "_ROWS", 50)
  folder = copy / "run/selection/miniplm/materialized"
  execute_lib.execute(steps(copy, form))
  uninterrupted = {
    p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".json"
  }
  assert len(contents(form, folder, corpus)) == len(kept)

  rows, calls = materialize_step._rows, []

  def dying(corpus, row_ids, progress):
    calls.append(row_ids)
    for i, row in enumerate(rows(corpus, row_ids, progress)):
      if len(calls) == 3 and i == 20:
        raise KeyboardInterrupt
      yield row

  monkeypatch.setattr(materialize_step, "_rows", dying)
  with pytest.raises(KeyboardInterrupt):
    execute_lib.execute(steps(copy, form), force=True)
  shown = (p for p in folder.iterdir() if p.name[0] != ".")  # not the former
  done = {p: p.stat().st_mtime_ns for p in shown}
  assert len(done) in (3, 5)  # two shards and the partial manifest
  execute_lib.execute(steps(copy, form))
  assert len(calls) == 3 + 4
  for name, content in uninterrupted.items():
    assert (folder / name).read_bytes() == content
  for path, when in done.items():
    if "manifest" not in path.name:
      assert path.stat().st_mtime_ns == when


def test_a_row_without_a_score_is_said(monkeypatch):
  columns = {
    "row_id": np.array([3, 5]),
    "nll_sum": np.array([1.5, 2.5], np.float32),
    "n_tokens": np.array([7, 8], np.int32),
  }
  monkeypatch.setattr(tasks._ScoreLookup, "_read", lambda self, i: columns)
  path = epath.Path("scores/manifest.json")
  names = {"part-00000003-00000006.parquet": {}}
  scored = tasks._ScoreLookup(types.SimpleNamespace(files=names, path=path))
  assert scored.look_up(5) == (2.5, 8)
  for missing in (0, 4, 6):
    with pytest.raises(UserError, match=f"row {missing} has no score"):
      scored.look_up(missing)
