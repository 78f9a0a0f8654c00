"""The released .bin/.idx files, byte by byte and damaged."""

import struct

import numpy as np
import pytest

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import megatron, sources

ROWS = [[1, 2, 3], [65_499, 0], [7]]


def demanded(rows, code, letter):
  """The two files by the format's description, value by value."""
  width = struct.calcsize(f"<{letter}")
  index = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", code)
  index += struct.pack("<QQ", len(rows), 1)
  for row in rows:
    index += struct.pack("<i", len(row))
  at = 0
  for row in rows:
    index += struct.pack("<q", at)
    at += len(row) * width
  index += struct.pack("<q", 0)
  ids = b"".join(struct.pack(f"<{letter}", i) for row in rows for i in row)
  return ids, index


def put(folder, ids, index, number=0):
  (folder / f"data_{number}.bin").write_bytes(ids)
  (folder / f"data_{number}.idx").write_bytes(index)
  return folder / f"data_{number}"


def write(folder, number=0, rows=ROWS, vocab_size=70_000):
  rows = (np.array(row, np.int32) for row in rows)
  return megatron.write(folder, number, rows, vocab_size)


@pytest.mark.parametrize(
  ("vocab_size", "code", "letter"),
  [(65_500, 4, "i"), (151_936, 4, "i"), (65_499, 8, "H")],
)
def test_the_bytes_are_those_of_the_format(tmp_path, vocab_size, code, letter):
  rows = [[min(i, vocab_size - 1) for i in row] for row in ROWS]
  prefix = write(tmp_path, 3, rows, vocab_size)
  assert prefix.name == "data_3"
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "data_3.bin",
    "data_3.idx",
  ]
  ids, index = demanded(rows, code, letter)
  assert (tmp_path / "data_3.bin").read_bytes() == ids
  assert (tmp_path / "data_3.idx").read_bytes() == index
  assert len(index) == 34 + 12 * len(rows) + 8


@pytest.mark.parametrize(
  ("code", "letter"), [(3, "h"), (4, "i"), (5, "q"), (8, "H")]
)
def test_every_type_of_ids_is_read(tmp_path, code, letter):
  rows = [[1, 2, 3], [32_767, 0], [], [7]]
  found = megatron.IndexedFile(put(tmp_path, *demanded(rows, code, letter)))
  assert len(found) == 4
  assert found.sizes.dtype == np.int32 and found.sizes.tolist() == [3, 2, 0, 1]
  for i, row in enumerate(rows):
    assert found[i].dtype == np.int32 and found[i].tolist() == row
  assert [r.tolist() for r in found] == rows
  with pytest.raises(IndexError):
    found[4]


def test_documents_that_others_have_ended_are_no_hindrance(tmp_path):
  """Megatron's own builder writes doc_idx [0, 1, …]."""
  ids, index = demanded(ROWS, 4, "i")
  index = index[:26] + struct.pack("<Q", 3) + index[34:]
  prefix = put(tmp_path, ids, index + struct.pack("<qq", 1, 3))
  assert [r.tolist() for r in megatron.IndexedFile(prefix)] == ROWS


def test_a_hundred_thousand_rows_come_back(tmp_path):
  rng = np.random.default_rng(0)
  sizes = rng.integers(2, 20, 100_000)
  ids = rng.integers(0, 50_000, sizes.sum()).astype(np.int32)
  rows = np.split(ids, np.cumsum(sizes)[:-1])
  found = megatron.IndexedFile(megatron.write(tmp_path, 0, rows, 50_000))
  np.testing.assert_array_equal(found.sizes, sizes)
  np.testing.assert_array_equal(np.concatenate(list(found)), ids)


def test_no_rows_are_a_shard_too(tmp_path):
  assert len(megatron.IndexedFile(write(tmp_path, 0, []))) == 0


def test_rows_are_streamed_and_a_failure_leaves_nothing(tmp_path):
  def rows():
    yield np.array([1, 2], np.int32)
    raise RuntimeError("broken off")

  with pytest.raises(RuntimeError):
    megatron.write(tmp_path, 0, rows(), 10)
  assert not list(tmp_path.iterdir())
  with pytest.raises(UserError, match="row 1 has ids from 10 to 10"):
    write(tmp_path, 0, [[1], [10]], 10)
  with pytest.raises(UserError, match="row 0 has ids from -1 to 3"):
    write(tmp_path, 0, [[-1, 3]], 10)
  assert not list(tmp_path.iterdir())


def test_a_failed_rewrite_keeps_the_old_shard(tmp_path):
  prefix = write(tmp_path)
  with pytest.raises(UserError):
    write(tmp_path, 0, [[1], [10]], 10)
  assert [r.tolist() for r in megatron.IndexedFile(prefix)] == ROWS


def _at(position, content):
  return lambda ids, index: (
    ids,
    index[:position] + content + index[position + len(content) :],
  )


@pytest.mark.parametrize(
  ("damage", "file", "message"),
  [
    (lambda ids, index: (ids, index[:-1]), "idx", "bytes is 77 where 78"),
    (lambda ids, index: (ids, index + b"\0"), "idx", "bytes is 79 where 78"),
    (lambda ids, index: (ids, index[:20]), "idx", "header bytes is 20"),
    (lambda ids, index: (ids, b""), "idx", "magic is b''"),
    (_at(0, b"TNTIDX\0\0\0"), "idx", "magic is b'TNTIDX"),
    (_at(9, b"\2"), "idx", "version is 2 where 1"),
    (_at(17, b"\x06"), "idx", r"dtype code is 6 \(float32\)"),
    (_at(17, b"\x63"), "idx", r"dtype code is 99 \(unknown\)"),
    (_at(17, b"\x08"), "idx", "byte offset is 12 of instance 1 where 6"),
    (_at(25, b"\xff"), "idx", "bytes is 78 where"),
    (_at(34, b"\xff\xff\xff\xff"), "idx", "size is -1 of instance 0"),
    (_at(34, b"\4"), "idx", "byte offset is 12 of instance 1 where 16"),
    (_at(46, b"\1"), "idx", "byte offset is 1 of instance 0 where 0"),
    (lambda ids, index: (ids[:-1], index), "bin", "bytes is 23 where 24"),
    (lambda ids, index: (ids + b"\0", index), "bin", "bytes is 25 where 24"),
    (lambda ids, index: (b"", index), "bin", "bytes is 0 where 24"),
  ],
)
def test_a_damaged_shard_is_refused(tmp_path, damage, file, message):
  prefix = put(tmp_path, *damage(*demanded(ROWS, 4, "i")))
  with pytest.raises(UserError, match=message) as e:
    megatron.IndexedFile(prefix)
  assert f"data_0.{file}" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("wrong", [-1, 2**31, 2**33 + 1])
def test_an_id_that_is_none_is_refused(tmp_path, wrong):
  prefix = put(tmp_path, *demanded([[1], [2, wrong]], 5, "q"))
  found = megatron.IndexedFile(prefix)
  assert found[0].tolist() == [1]
  with pytest.raises(UserError, match=r"instance 1 has ids .*data_0\.bin"):
    found[1]


def listed(source):
  """The prefixes of a source, as stage tokenize reads them."""
  corpus = CorpusConfig(source=str(source))
  return [chunk.prefix for chunk in sources.list_chunks(corpus)]


def test_shards_come_in_the_order_of_their_numbers(tmp_path):
  for number in range(12):
    write(tmp_path, number)
  (tmp_path / "README.md").write_text("no shard")
  assert listed(tmp_path) == [f"{tmp_path}/data_{k}" for k in range(12)]
  assert listed(tmp_path / "data_1.*") == [f"{tmp_path}/data_1"]


@pytest.mark.parametrize(
  ("removed", "named"),
  [
    (("data_1.bin",), "data_1.bin is missing"),
    (("data_2.idx",), "data_2.idx is missing"),
    (("data_1.bin", "data_1.idx"), "data_1.bin is missing"),
    (("data_0.bin", "data_0.idx"), "data_0.bin is missing"),
    ([f"data_{k}.{e}" for k in range(3) for e in ("bin", "idx")], "no file"),
  ],
)
def test_a_gap_names_the_missing_file(tmp_path, removed, named):
  for number in range(3):
    write(tmp_path, number)
  for name in removed:
    (tmp_path / name).unlink()
  with pytest.raises(UserError, match=named):
    listed(tmp_path)
