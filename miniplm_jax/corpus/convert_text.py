"""From packed rows back to runs of text: nothing lost, nothing doubled.

A row may begin or end in the middle of a document, and of a character. What
two neighboring chosen rows hold of one document is one run. A character
that a row's end cuts belongs to the row that holds its first byte: it is
completed from the next row, even from one that was not chosen; a row that
begins inside a character leaves those bytes to the row before.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus.store import Corpus, StoredRow, read_each
from miniplm_jax.corpus.tokenizer import PROBE


class RowDecoder:
  """A corpus of which rows are read as bytes; all parts share one."""

  def __init__(self, corpus: Corpus):
    """Loads the tokenizer of the corpus, which takes seconds."""
    self.corpus, self.encoder = corpus, corpus.tokenizer()

  @functools.cached_property
  def token_bytes(self) -> list[bytes]:
    """The bytes of every id, if those of a text join to it."""
    each = self.encoder.token_bytes()
    (ids,) = self.encoder.encode([PROBE])
    if b"".join(each[i] for i in ids) != PROBE.encode():
      raise UserError(
        "the tokenizer is not byte-level, so rows cannot be joined without "
        "loss",
        str(self.corpus.directory / "tokenizer"),
        "set --config.student.conversion=one_to_one",
      )
    return each


@dataclasses.dataclass(frozen=True)
class PartRows:
  """The rows of one part of a corpus that are converted."""

  decoder: RowDecoder
  of_part: range  # all row ids of the part
  row_ids: np.ndarray  # int64, those to convert, ascending
  part: int = 0


@dataclasses.dataclass(frozen=True)
class TextRun:
  """Text of one document, from one or several rows that follow each other."""

  domain: str
  split: str  # of its rows
  text: str  # whole characters
  rows: tuple[int, ...]  # ids of the rows it comes from, ascending
  # int64 [rows]: where in the text's UTF-8 each row's characters end.
  ends: np.ndarray


def split_ids(ids: np.ndarray, eos_id: int) -> list[np.ndarray]:
  """Returns the ids between the eos of a row; some may be empty."""
  at = np.flatnonzero(ids == eos_id)
  starts, ends = np.append(0, at + 1), np.append(at, len(ids))
  return [ids[start:end] for start, end in zip(starts, ends)]


@dataclasses.dataclass
class _OpenRun:
  """A run that the next row may go on with."""

  rows: list[int] = dataclasses.field(default_factory=list)
  ends: list[int] = dataclasses.field(default_factory=list)
  content: bytearray = dataclasses.field(default_factory=bytearray)


class TextRuns:
  """The chosen rows of one part of a corpus as runs of text.

  `counts` is of what was read: `bytes_in`, of the chosen rows' text;
  `bytes_left_before`, of characters that begin in a row that was not chosen;
  `bytes_taken_after`, from the next rows to complete characters; and
  `bytes_dropped`, of characters whose rest the corpus does not have.
  """

  def __init__(self, rows: PartRows):
    """Reads nothing yet; refuses a tokenizer that is not byte-level."""
    self._rows, self._corpus = rows, rows.decoder.corpus
    self._bytes, encoder = rows.decoder.token_bytes, rows.decoder.encoder
    self._eos_id, self._bos_id = encoder.eos_id, encoder.bos_id
    self.counts = collections.Counter(
      bytes_in=0, bytes_left_before=0, bytes_taken_after=0, bytes_dropped=0
    )

  def __iter__(self) -> Iterator[TextRun]:
    """Yields runs, those of a domain and split in the order of the text."""
    # By split and domain: the run that is open, and the row it ends in.
    opened: dict[tuple[str, str, bool], tuple[_OpenRun, StoredRow]] = {}
    row_ids = self._rows.row_ids
    for row_id, row in zip(row_ids.tolist(), read_each(self._corpus, row_ids)):
      key = row.split, row.domain, row.has_own_split
      run, before = opened.pop(key, (None, None))
      if run and not (
        self._after(run.rows[-1]) == row_id and self._goes_on(before, row)
      ):
        yield from self._close(key, run, before)
        run = None
      *whole, last = split_ids(row.ids, self._eos_id)
      for ids in whole:
        run = run or _OpenRun()
        self._add(run, row_id, ids)
        yield from self._close(key, run)
        run = None
      if len(last):
        run = run or _OpenRun()
        self._add(run, row_id, last)
        opened[key] = run, row
    for key in sorted(opened):
      yield from self._close(key, *opened[key])

  @functools.cached_property
  def _next(self) -> np.ndarray:
    """int64 [rows of the part]: the next row of the same domain, or −1.

    Where documents have splits of their own, the row that its last goes on in.
    """
    rows = np.arange(self._rows.of_part.start, self._rows.of_part.stop)
    following = np.full(len(rows), -1)
    if self._corpus.manifest.settings.get("split_field"):
      ends: dict[int, int] = {}  # by document: the last row that has of it
      for i, row in enumerate(read_each(self._corpus, rows)):
        if (before := ends.pop(row.documents[0], None)) is not None:
          following[before] = rows[i]
        ends[row.documents[-1]] = i
      return following
    _, domain = np.unique(self._corpus.domains(rows), return_inverse=True)
    order = np.argsort(domain, kind="stable")
    same = domain[order[1:]] == domain[order[:-1]]
    following[order[:-1][same]] = rows[order[1:][same]]
    return following

  def _after(self, row_id: int) -> int:
    """The next row of its domain, or −1."""
    return int(self._next[row_id - self._rows.of_part.start])

  def _add(self, run: _OpenRun, row_id: int, ids: np.ndarray):
    content = self._text(ids)
    self.counts["bytes_in"] += len(content)
    run.content += content
    run.rows.append(row_id)
    run.ends.append(len(run.content))

  def _text(self, ids: np.ndarray) -> bytes:
    return b"".join(map(self._bytes.__getitem__, ids.tolist()))

  def _goes_on(self, row: StoredRow, after: StoredRow) -> bool:
    """Whether the text that a row breaks off in goes on in the next one."""
    ids = row.ids[row.ids != self._bos_id]
    is_same = row.documents[-1:] == after.documents[:1] != ()
    if not is_same or not len(ids) or ids[-1] == self._eos_id:
      return False
    # Where the document begins: behind an eos, of which it may have more.
    begin = len(ids) - after.offset
    if len(row.documents) == 1:
      return begin == -row.offset
    return begin > 0 and ids[begin - 1] == self._eos_id

  def _close(
    self,
    key: tuple[str, str, bool],
    run: _OpenRun,
    last: StoredRow | None = None,
  ) -> Iterator[TextRun]:
    """The run, if it has text; `last` is the row that it breaks off in."""
    left = _leading(run.content)
    self.counts["bytes_left_before"] += left
    content = run.content[left:]
    missing = _missing(content)
    if missing and last is not None:
      taken = self._following(run.rows[-1], last, missing)
      self.counts["bytes_taken_after"] += len(taken)
      content += taken
    if missing and _missing(content):
      start = max(i for i, b in enumerate(content) if b >= 0xC0)
      self.counts["bytes_dropped"] += len(content) - start
      content = content[:start]
    if not content:
      return
    try:
      text = content.decode()
    except UnicodeDecodeError as e:
      raise UserError(
        f"the bytes of rows {run.rows[0]} to {run.rows[-1]} are no text "
        f"({e.reason} at byte {e.start})",
        str(self._corpus.directory),
        "make the corpus again, or set --config.student.conversion=one_to_one",
      ) from e
    split, domain, _ = key
    ends = [_character_end(content, end - left) for end in run.ends[:-1]]
    ends = np.array([*ends, len(content)])
    yield TextRun(domain, split, text, tuple(run.rows), ends)

  def _following(self, row_id: int, row: StoredRow, missing: int) -> bytes:
    """The bytes that complete a cut character, from the rows after it."""
    taken = b""
    while len(taken) < missing:
      row_id = self._after(row_id)
      if row_id < 0:
        break
      (after,) = self._corpus.read([row_id])
      if not self._goes_on(row, after):
        break
      content = self._text(split_ids(after.ids, self._eos_id)[0])
      rest = content[: min(_leading(content), missing - len(taken))]
      taken, row = taken + rest, after
      if len(rest) < len(content):
        break
    return taken


def _leading(content: bytes) -> int:
  """How many bytes at the start continue a character."""
  for i, b in enumerate(content):
    if b & 0xC0 != 0x80:
      return i
  return len(content)


def _character_end(content: bytes, at: int) -> int:
  """The end of the character that a row's end cuts."""
  at = min(max(at, 0), len(content))
  return at + _leading(content[at : at + 3])


def _missing(content: bytes) -> int:
  """How many bytes the character at the end still needs."""
  for back, b in enumerate(reversed(content[-3:]), 1):
    if b & 0xC0 != 0x80:
      size = 1 + (b >= 0xC0) + (b >= 0xE0) + (b >= 0xF0)
      return max(size - back, 0)
  return 0
