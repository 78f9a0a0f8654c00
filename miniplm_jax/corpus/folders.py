"""Which files a source is, be it a file, a folder or a glob; their domains."""

import collections
import functools
import glob
import os
import re
import urllib.parse
from collections.abc import Iterable, Sequence

from etils import epath

from miniplm_jax.core import files, gs
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.core.fields import is_text
from miniplm_jax.core.log import log, warn
from miniplm_jax.core.workdir import FILES, FOLDERS, MANIFEST, PARTIAL
from miniplm_jax.corpus import datasets, formats
from miniplm_jax.corpus.datasets import HF, TFDS

_LINES, _JSON = (
  tuple(stem + packed for packed in ("", *formats.PACKED))
  for stem in (".jsonl", ".json")
)
TEXT = (".txt", ".md")
MEGATRON = (".bin", ".idx")
_ENDINGS = (*_LINES, *_JSON, ".parquet", *TEXT, *MEGATRON)


def is_of(file: epath.Path, endings: Sequence[str]) -> bool:
  """Returns whether a file is of a kind, by its ending in any case."""
  return file.name.lower().endswith(endings)


# Of a folder, what there is of the first of these: a data set may have a
# README beside it, and rows that were packed a list of their sources.
_KINDS = ((*_LINES, ".parquet"), _JSON, TEXT)
_CORPUS = {("corpus", MANIFEST), ("corpus", PARTIAL)}  # in a workdir
# Each text is said once in a process.
_note = functools.cache(functools.partial(log, "tokenize"))
_warn = functools.cache(functools.partial(warn, "tokenize"))
# Lies beside data, and is none.
_ABOUT = re.compile(r"readme|licen[cs]e", re.IGNORECASE)


def name_below(root: epath.Path, file: epath.Path) -> str:
  """Returns a file's name below the root: a folder may be moved."""
  if root in file.parents:
    return str(file.relative_to(root))
  return file.name


def stem(file: epath.Path) -> str:
  """Returns a file's name without its endings and, of several, its number."""
  return re.sub(r"-\d+-of-\d+$", "", file.name.split(".")[0])


def domain_of(
  root: epath.Path, file: epath.Path, field: str, default: str
) -> str:
  """Returns the domain of documents that do not say theirs.

  Folders FIELD=VALUE give it, as Hive and Spark lay out tables, else the first
  folder below the root, else it is the default.
  """
  pairs = [name.partition("=") for name in file.parts[:-1] if "=" in name]
  columns = {name: urllib.parse.unquote(value) for name, _, value in pairs}
  folder, _, below = name_below(root, file).partition("/")
  folder = urllib.parse.unquote(folder.rpartition("=")[2]) if below else ""
  # NAME= has none, as a record whose field is empty.
  return columns.get(field) or folder or default


def _not_ours(
  paths: Iterable[epath.Path], root: epath.Path, workdir: epath.Path | None
) -> list[epath.Path]:
  """Those that no stage wrote: nothing in the workdir if it is below the root.

  If it is not, its files may be the source: they lie beside ours.
  """
  if workdir is None:
    return list(paths)
  if root in workdir.parents:
    return [f for f in paths if workdir not in (f, *f.parents)]
  ours = {workdir / name for name in (*FOLDERS, *FILES)}
  return [file for file in paths if ours.isdisjoint((file, *file.parents))]


def _is_of_a_corpus(file: epath.Path) -> bool:
  """Whether stage tokenize wrote it: it lies in a workdir, whosever."""
  is_named_so = file.parts[-2:] in _CORPUS
  return is_named_so and files.read_json(file).get("stage") == "tokenize"


def _in_folder(
  path: epath.Path, split: str, workdir: epath.Path | None
) -> list[epath.Path]:
  """The files of a folder that are read, none of them hidden."""
  below = _not_ours(files.below(path), path, workdir)
  for other in [f.parents[1] for f in below if _is_of_a_corpus(f)]:
    _note(f"left out: what stages wrote into {other}")
    below = _not_ours(below, other, other)
  below.sort()
  chosen = _pairs(below)
  for endings in _KINDS:
    chosen = chosen or [file for file in below if is_of(file, endings)]
  left = {f for f in below if not _ABOUT.match(f.name)} - set(chosen)
  _refuse_datasets(path, chosen)
  if chosen and left:
    counts = collections.Counter(file.suffix or file.name for file in left)
    each = ", ".join(f"{n} {ending}" for ending, n in sorted(counts.items()))
    _note(f"left out, as none is of the kind of {chosen[0].name}: {each}")
  chosen = _of_split(path, chosen, split)
  _refuse_gaps({f.with_suffix("") for f in chosen if f.suffix in MEGATRON})
  return chosen


def _once(paths: Sequence[epath.Path]) -> list[epath.Path]:
  """Sorted, none by a second name; says which may be there in two formats."""
  by_place: dict[str, epath.Path] = {}
  for file in sorted(paths):
    real = os.path.realpath(file) if gs.is_local(file) else os.fspath(file)
    if (first := by_place.setdefault(real, file)) != file:
      _note(f"left out: {file}, another name of {first}")
  formats_of = collections.defaultdict(list)
  for file in by_place.values():
    if not is_of(file, MEGATRON):  # which are pairs
      ending = max(filter(file.name.lower().endswith, _ENDINGS), key=len)
      formats_of[file.parent, file.name[: -len(ending)]].append(file.name)
  if twice := [names for names in formats_of.values() if len(names) > 1]:
    more = f", and {len(twice) - 1} more such" if twice[1:] else ""
    _warn(f"{' and '.join(twice[0])} may be one text, read twice{more}")
  return list(by_place.values())


def _refuse_datasets(path: epath.Path, chosen: Iterable[epath.Path]):
  """Raises UserError if the records would be what is said of data sets."""
  for file in chosen:
    folder = file.parent
    if file.name == "dataset_info.json" and (
      datasets.is_saved(folder) or datasets.is_tfds(folder)
    ):
      hint = f"give one of them, as {folder}"
      raise UserError("a folder of data sets", str(path), hint)


def _pairs(paths: Sequence[epath.Path]) -> list[epath.Path]:
  """Packed rows: pairs of .bin and .idx, and what else has their NAME_k.

  A .bin alone may be anything.
  """
  halves = [file for file in paths if file.suffix in MEGATRON]
  counts = collections.Counter(file.with_suffix("") for file in halves)
  names = {_numbered(stem)[0] for stem, n in counts.items() if n == 2}
  return [f for f in halves if _numbered(f.with_suffix(""))[0] in names]


def _numbered(stem: epath.Path) -> tuple[str, int | None]:
  """(FOLDER/NAME, k) of FOLDER/NAME_k."""
  name, _, number = os.fspath(stem).rpartition("_")
  if name and number.isdecimal():
    return name, int(number)
  return os.fspath(stem), None


# As `datasets` takes words of files' names.
_SPLITS = {
  "training": "train",
  "valid": "validation",
  "val": "validation",
  "dev": "validation",
  "testing": "test",
  "eval": "test",
  "evaluation": "test",
}


def _of_split(
  root: epath.Path, paths: list[epath.Path], split: str
) -> list[epath.Path]:
  """Those whose names say the split; what says none is for training."""
  asked = _SPLITS.get(split, split)
  named = {file: _split_in(root, file, asked) for file in paths}
  splits = sorted(set(named.values()) - {""})
  if not splits:
    if asked != "train":
      _note(f"no name says a split, so all files count as {split!r}")
    return paths
  kept = [
    file
    for file, name in named.items()
    if name == asked or (not name and asked == "train")
  ]
  if not kept:
    raise UserError(
      f"no file is of the split {split!r}",
      str(root),
      f"set --config.corpus.split to one of {', '.join(splits)}, or give the "
      "files by a glob",
    )
  if others := [s for s in splits if s != asked]:
    _note(f"files of other splits are left out: {', '.join(others)}")
  return kept


def _split_in(root: epath.Path, file: epath.Path, asked: str) -> str:
  """The split that a name below the root says, or ""."""
  parts = file.relative_to(root).parts
  # A text's own name may be of anything.
  name = "/".join(parts[:-1] if is_of(file, TEXT) else parts).lower()
  if re.search(rf"(?<![^\W_]){re.escape(asked.lower())}(?![^\W_])", name):
    return asked
  words = (_SPLITS.get(w, w) for w in re.split(r"[\W_\d]+", name))
  return next((w for w in words if w in ("train", "validation", "test")), "")


def match(
  path: epath.Path, source: str, split: str, workdir: epath.Path | None
) -> list[epath.Path]:
  """The files of a source, which may be a pattern, sorted.

  What the stages wrote into the workdir is left out.

  Raises:
    UserError: there are none, or some that cannot be read.
  """
  if path.is_dir():
    paths = _in_folder(path, split, workdir)
  elif path.exists():
    paths = [path]
  else:
    if gs.is_local(path):
      names = set(glob.glob(source, recursive=True))  # ** gives some twice
      paths = _not_ours(map(epath.Path, names), root_of(path), workdir)
      folders = {file for file in paths if file.is_dir()}
      outer = [f for f in paths if folders.isdisjoint(f.parents)]
      paths = [f for f in outer if f not in folders]
      for folder in folders.intersection(outer):
        paths += _in_folder(folder, split, workdir)
    else:
      paths = list(path.parent.glob(path.name))
      paths = _not_ours(paths, root_of(path), workdir)
  known = f"{', '.join(_ENDINGS)}, a folder of them or a glob; {TFDS}NAME, "
  known += f"{HF}ORG/NAME or a folder saved by either library"
  if not paths:
    raise GoneError(
      "no file of documents is there",
      f"config.corpus.source={source}",
      f"give {known}",
    )
  for file in paths:
    if not is_of(file, _ENDINGS):
      raise UserError("not a known format", str(file), f"give {known}")
    if not is_text(str(file)):
      # Domains and parts are named after files, in JSON and Parquet.
      hint = "rename the file, or the folder that has such a name"
      raise UserError("a name that is not UTF-8", repr(str(file)), hint)
  packed = [is_of(file, MEGATRON) for file in paths]
  if any(packed) and not all(packed):
    raise UserError(
      "packed rows (.bin, .idx) and text are mixed",
      f"config.corpus.source={source}",
      "keep them in different folders",
    )
  return _once(paths)


def root_of(source: epath.Path) -> epath.Path:
  """Returns the folder that names of files are relative to."""
  if source.exists():  # then it is no pattern, whatever its name
    return source
  return next(p for p in source.parents if not glob.has_magic(str(p)))


def _refuse_gaps(stems: Iterable[epath.Path]):
  """Raises UserError if numbers are missing; released data begin with 0."""
  numbers = collections.defaultdict(set)
  for name, number in map(_numbered, stems):
    if number is not None:
      numbers[name].add(number)
  for name, present in numbers.items():
    first = 0 if epath.Path(name).name == "data" else min(present)
    for number in range(first, max(present)):
      if number not in present:
        raise UserError(
          f"{epath.Path(name).name}_{number}.bin is missing",
          str(epath.Path(name).parent),
          "fetch it, or give the files by a glob if there is none",
        )
