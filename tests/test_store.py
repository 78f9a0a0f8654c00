"""The packed corpus as it is read: many shards, few files, large columns."""

import collections
import hashlib
import os
import threading
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from miniplm_jax.core import array_records, files
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus import columns, store
from miniplm_jax.corpus.store import Corpus, StoredRow

DOMAINS = ("even", "odd")


def instance(row: int) -> StoredRow:
  ids = np.array([row, row + 1], np.int32)
  split = "heldout" if row % 3 == 0 else "train"
  return StoredRow(ids, DOMAINS[row % 2], split, 0, (row,), 0, 2 * row, row)


def write(folder, parts: int, rows: int = 3) -> Manifest:
  """A corpus of so many shards of so many rows."""
  folder = epath.Path(folder)
  for part in range(parts):
    found = range(part * rows, (part + 1) * rows)
    names = store.shard_names(part, parts)
    seen = collections.Counter(rows=rows)
    store.write_shard(folder, names, map(instance, found), seen)
  counts, described = store.merge(folder, parts)
  made = {"settings": {}, "inputs": {}, "counts": counts, "files": described}
  return Manifest(folder / "manifest.json", "tokenize", **made)


def open_files(folder) -> int:
  """How many files of rows of a folder this process has open.

  pyarrow may close an index a moment after it is read.
  """
  links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
  names = [os.readlink(link) for link in links if os.path.islink(link)]
  names = [name for name in names if name.endswith(".array_record")]
  return sum(name.startswith(str(folder)) for name in names)


def test_more_shards_than_files_that_may_be_open(tmp_path, monkeypatch):
  monkeypatch.setattr(array_records, "most_open", lambda: 3)
  corpora = [Corpus(write(tmp_path / name, 8)) for name in "ab"]
  for row in np.random.default_rng(1).permutation(24).tolist():
    for corpus in corpora:
      (found,) = corpus.read([row])
      assert found.documents == (row,)
  assert [r.documents[0] for r in corpora[0].read([23, 0, 9])] == [23, 0, 9]
  assert open_files(tmp_path) == 3  # of both


def test_a_file_that_is_being_read_is_not_closed(tmp_path, monkeypatch):
  monkeypatch.setattr(array_records, "most_open", lambda: 1)
  corpus, failed = Corpus(write(tmp_path, 4)), []

  def read(seed):
    try:
      for row in np.random.default_rng(seed).integers(0, 12, 200).tolist():
        assert corpus.read([row])[0].documents == (row,)
    except BaseException as e:
      failed.append(e)

  threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert not failed


def test_a_damaged_file_is_no_error_of_the_next(tmp_path):
  """Which closes it, when nobody has it any more."""
  from array_record.python.array_record_module import ArrayRecordWriter

  (tmp_path / "bad").write_bytes(b"cut off by a copy")
  writer = ArrayRecordWriter(str(tmp_path / "good"), "group_size:1")
  writer.write(b"row")
  writer.close()
  damaged = array_records.Readers(lambda _: epath.Path(tmp_path / "bad"))
  with pytest.raises(RuntimeError, match="64KB"):
    damaged.read(0, [0])
  del damaged
  good = array_records.Readers(lambda _: epath.Path(tmp_path / "good"))
  assert good.read(0, [0]) == [b"row"]


def test_files_of_a_corpus_that_is_gone_are_closed(tmp_path):
  corpus = Corpus(write(tmp_path / "a", 4))
  corpus.read(range(12))
  assert open_files(tmp_path / "a") == 4
  del corpus
  Corpus(write(tmp_path / "b", 1)).read([0])
  assert open_files(tmp_path / "a") == 0


def test_a_domain_that_no_row_is_of_is_told(tmp_path, capsys):
  corpus = Corpus(write(tmp_path, 2))
  corpus.warn_of_missing((), "train")
  corpus.warn_of_missing(("odd",), "train")
  assert not capsys.readouterr().out
  corpus.warn_of_missing(("odd", "od"), "train")
  assert "[train] warning: no row is of domain 'od'" in capsys.readouterr().out


def test_of_the_index_is_read_what_is_asked_for(tmp_path):
  corpus = Corpus(write(tmp_path, 4))
  assert corpus.rows_of("heldout").tolist() == [0, 3, 6, 9]
  assert corpus.lengths.tolist() == [2] * 12
  rows = np.array([5, 0, 11])
  assert corpus.domains(rows).tolist() == ["odd", "even", "odd"]
  assert corpus.domains().tolist() == ["even", "odd"] * 6
  assert corpus.heldout_rows(0, ["odd"]).tolist() == [0, 6]
  assert set(corpus.index) == {"n_tokens", "domain"}
  # As strings, names of 10⁸ rows would be more than one array holds.
  assert pa.types.is_dictionary(corpus.index["domain"].type)
  assert corpus.index["hash"].to_pylist() == list(range(12))


def test_a_shard_may_have_no_rows(tmp_path):
  rows = [instance(i) for i in range(3)]
  for part, found in enumerate((rows, [])):
    names = store.shard_names(part, 2)
    store.write_shard(tmp_path, names, found, {"rows": len(found)})
  counts, described = store.merge(epath.Path(tmp_path), 2)
  body = {"settings": {}, "inputs": {}, "counts": counts, "files": described}
  corpus = Corpus(Manifest(epath.Path(tmp_path) / "m", "tokenize", **body))
  assert corpus.rows_of("heldout").tolist() == [0]
  assert corpus.domains().tolist() == ["even", "odd", "even"]
  assert corpus.rows_of("teacher").tolist() == []


def test_the_index_has_the_ids_of_the_rows(tmp_path):
  write(tmp_path, 3)

  def ids():
    indices = sorted(tmp_path.glob("index-*"))
    return [pq.read_table(index)["row_id"].to_pylist() for index in indices]

  assert ids() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
  # The source has grown, and its first part was made again.
  names = store.shard_names(0, 3)
  rows = map(instance, range(5))
  store.write_shard(epath.Path(tmp_path), names, rows, {"rows": 5})
  _, described = store.merge(epath.Path(tmp_path), 3)
  assert ids() == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9, 10]]
  for name, facts in described.items():
    assert facts == files.describe(tmp_path / name)


def test_an_index_of_another_number_of_rows_is_refused(tmp_path):
  made = write(tmp_path, 2)
  made.counts["rows"] += 1
  with pytest.raises(UserError, match="index has 6 rows, the manifest 7"):
    Corpus(made).domains()


def test_a_file_is_hashed_where_it_is_written(tmp_path, monkeypatch):
  describe, described = files.describe, []
  monkeypatch.setattr(
    files, "describe", lambda path: described.append(path) or describe(path)
  )
  made = write(tmp_path, 2)
  assert len(described) == 2 * 2  # each once
  assert all(f"{path}".endswith(".parquet") for path in described[2:])
  for name, facts in made.files.items():
    assert facts == describe(tmp_path / name)


def test_shards_of_an_earlier_version_are_hashed_for_the_manifest(tmp_path):
  made = write(tmp_path, 2)
  for index in tmp_path.glob("index-*"):
    table = pq.read_table(index)
    metadata = table.schema.metadata
    del metadata[b"file"], metadata[b"content"]
    pq.write_table(table.replace_schema_metadata(metadata), index)
  _, described = store.merge(epath.Path(tmp_path), 2)
  assert made.files.keys() == described.keys()
  for name, facts in described.items():
    assert facts == files.describe(tmp_path / name)


def test_an_index_is_hashed_without_its_values_as_python_objects():
  """As it always was: of the lists that Python would write."""
  names = ["pile-cc", "it's", 'a "b" it\'s', "日本\n", ""] * 14_000
  table = pa.table(
    {
      "domain": pa.chunked_array([names[:9], [], names[9:]]),
      "n_tokens": pa.array(range(-5, len(names) - 5), pa.int32()),
      "hash": pa.array([2**64 - 1 - i for i in range(len(names))], pa.uint64()),
      "row_id": pa.array(range(len(names))),
    }
  )
  tracemalloc.start()
  found = columns.digest(table, {"a": 1})
  _, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert most < 1 << 20
  wanted = hashlib.sha256(b'{"a": 1}')
  for name in table.column_names[:-1]:
    for values in (table[name][:65_536], table[name][65_536:]):
      wanted.update(repr(values.to_pylist()).encode())
  assert found == wanted.hexdigest()
