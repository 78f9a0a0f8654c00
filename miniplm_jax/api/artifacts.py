"""What steps have made, as objects: opened by path, read as Arrow tables.

An artifact is a folder with a manifest that says of what it was made, how, and
which files it has. The functions of this package and the command line
make the same folders; whatever made one, it opens here.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from etils import epath, epy

from miniplm_jax.api import border
from miniplm_jax.core import files, gs
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import MANIFEST

with epy.lazy_imports():  # NumPy, PyArrow, JAX: `import miniplm_jax` is quick
  import numpy as np
  import pyarrow as pa

  from miniplm_jax.corpus import documents, kept_rows, store
  from miniplm_jax.scoring import table


class ToPandas:
  """What can be read as an Arrow table."""

  def to_pandas(self):
    """`to_arrow` as a DataFrame; needs pandas."""
    return self.to_arrow().to_pandas()


class Artifact:
  """A folder with a manifest."""

  stages: tuple[str, ...] = ()  # that make such an artifact
  _counted: tuple[str, ...] = ("rows",)  # of its manifest's counts, to be shown

  @border.in_python()
  def __init__(self, path: epath.PathLike):
    """Opens it; raises UserError if it is none, damaged or of another kind."""
    self.path = epath.Path(path).expanduser()
    self.manifest = manifest_lib.require(self.path / MANIFEST)
    if self.stages and self.manifest.stage not in self.stages:
      raise UserError(
        f"not made by stage {' or '.join(self.stages)} but by "
        f"{self.manifest.stage}",
        str(self.path),
        "open it with open_artifact, or give another folder",
      )

  @property
  def name(self) -> str:
    """Its folder's name."""
    return self.path.name

  @property
  def settings(self) -> Mapping[str, Any]:
    """Everything that was set and changes the content."""
    return self.manifest.settings

  @property
  def fingerprint(self) -> str:
    """sha256 of what it was made from, how, and of its files."""
    return self.manifest.fingerprint

  @border.in_python()
  def check(self):
    """Raises UserError unless all files have the sha256 that was written."""
    self.manifest.check_content()

  def __repr__(self) -> str:
    counts = self.manifest.counts
    words = [f"{counts[n]:,} {n}" for n in self._counted if n in counts]
    return f"{type(self).__name__}({', '.join([repr(str(self.path)), *words])})"


class Corpus(Artifact, ToPandas):
  """Packed rows with their domains and splits, and the tokenizer."""

  stages = ("tokenize", "convert", "seqkd", "conditional")

  @functools.cached_property
  def reader(self) -> "store.Corpus":
    """Random access to the rows."""
    return store.Corpus(self.manifest)

  def __len__(self) -> int:
    return self.manifest.counts["rows"]

  @property
  def max_length(self) -> int:
    """Inputs of a row; it holds one id more."""
    return self.settings["max_length"]

  @property
  def fields(self) -> tuple[str, ...]:
    """Names of the numbers that rows carry of their documents."""
    return documents.names(self.settings)

  @property
  def tokenizer(self):
    """The tokenizer that the rows were made with."""
    return self.reader.tokenizer()

  def split(self, name: str) -> "Rows":
    """The rows of a split: train (what is selected from), reference, heldout.

    Raises:
      UserError: there is no such split.
    """
    if name not in store.SPLITS:
      hint = f"choose from {', '.join(store.SPLITS)}"
      raise UserError(f"no split {name!r}", str(self.path), hint)
    return Rows(self, self.reader.rows_of(name), f"split {name}")

  def to_arrow(self) -> "pa.Table":
    """A table of row_id, domain, split, n_tokens, n_bytes, hash, and fields."""
    return self.rows(np.arange(len(self))).to_arrow()

  def rows(self, ids) -> "Rows":
    """Some rows, by their ids, ascending and each once.

    Raises:
      UserError: there is no such row, or ids are in another order: texts would
        be those of other rows than the caller takes them for.
    """
    ids = np.asarray(ids).reshape(-1)
    if len(ids) and ids.dtype.kind not in "iu":
      what = f"row ids are {ids.dtype}"
      raise UserError(what, str(self.path), "give whole numbers")
    for row_id in ids[(ids < 0) | (ids >= len(self))].tolist()[:1]:
      hint = f"there are {len(self):,}, from 0"
      raise UserError(f"no row {row_id}", str(self.path), hint)
    if (ids[1:] <= ids[:-1]).any():
      hint = "give numpy.unique(ids): rows and texts() are in that order"
      raise UserError("row ids are not ascending", str(self.path), hint)
    ids = ids.astype(np.int64)
    return Rows(self, ids, f"rows {files.digest(ids.tolist())[:12]}")


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(ToPandas):
  """Rows of a corpus: of a split, of a selection, or of one's own choice."""

  corpus: Corpus
  ids: Any  # int64 [rows], ascending
  name: str  # in words, as manifests of training have it
  path: epath.Path | None = None  # of the selection that they are

  def __len__(self) -> int:
    return len(self.ids)

  def __repr__(self) -> str:
    return f"Rows({self.name!r}, {len(self):,} of {self.corpus!r})"

  def to_arrow(self) -> "pa.Table":
    """A table of row_id, domain, split, n_tokens, n_bytes, hash, and fields.

    Fields are those of `CorpusConfig.fields`, float32, NaN of a row without.
    """
    index, fields = self.corpus.reader.index, self.corpus.fields
    names = ("domain", "split", "n_tokens", "n_bytes", "hash", *fields)
    columns = {name: index[name].take(pa.array(self.ids)) for name in names}
    return pa.table({"row_id": pa.array(self.ids), **columns})

  @border.in_python()
  def texts(self, most: int | None = None) -> list[str]:
    """The texts of the first rows, as the tokenizer decodes them."""
    decode = self.corpus.tokenizer.decode
    return [decode(row.ids) for row in self.corpus.reader.read(self.ids[:most])]


class ScoreTable(Artifact, ToPandas):
  """Σ −log p and tokens of every row under the model of its name."""

  stages = ("score", "proxy")

  def __len__(self) -> int:
    return self.manifest.counts["rows"]

  def to_arrow(self) -> "pa.Table":
    """A table of row_id, nll_sum (diff_sum of a proxy), in nats, n_tokens."""
    parts = [pa.table(dict(part)) for part in table.parts(self.manifest)]
    return pa.concat_tables(parts)


class OfCorpus(Artifact):
  """What is made from a corpus, which lies in the same workdir."""

  def __init__(self, path: epath.PathLike, corpus: Corpus | None = None):
    """Opens it; without `corpus` that which lies in a folder above it."""
    super().__init__(path)
    self._corpus = corpus

  @functools.cached_property
  def corpus(self) -> Corpus:
    """The corpus that it was made from.

    Raises:
      UserError: it is in none of three folders above, or is another by now.
    """
    if self._corpus is not None:
      return self._corpus
    for folder in gs.absolute(self.path).parents[:3]:
      manifest = manifest_lib.read(folder / "corpus" / MANIFEST)
      if manifest and manifest.fingerprint == self.manifest.inputs["corpus"]:
        return Corpus(folder / "corpus")
    raise UserError(
      "the corpus that it was made from is not in a folder above it",
      str(self.path),
      f"give it: {type(self).__name__}(path, corpus)",
    )


class Selection(OfCorpus, ToPandas):
  """The rows of D that are kept."""

  stages = ("select",)
  _counted = ("kept", "rows")

  @functools.cached_property
  def rows(self) -> Rows:
    """The kept rows, in the corpus's order."""
    ids = kept_rows.kept_rows(self.manifest)
    return Rows(self.corpus, ids, f"selection {self.name}", self.path)

  def __len__(self) -> int:
    return len(self.rows)

  def to_arrow(self) -> "pa.Table":
    """As `Rows.to_arrow`, of the kept rows."""
    return self.rows.to_arrow()
