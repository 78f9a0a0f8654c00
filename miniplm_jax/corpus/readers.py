"""Documents from wherever they are: one list of parts for any source.

A part is read from start to end and becomes one shard of the corpus, so any
part can be made again without the others, by any process.
"""

import collections
import functools
import glob
import itertools
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from miniplm_jax.core import contents, files, gs
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import is_text
from miniplm_jax.core.progress import say
from miniplm_jax.core.workdir import FILES, FOLDERS
from miniplm_jax.corpus import formats
from miniplm_jax.corpus.records import (
  Fields,
  Packed,
  Part,
  Probe,
  pieces,
)

EMBEDDED = "embedded"  # the text that every installation carries
TFDS, HF = "tfds:", "hf:"  # before a name


def list_parts(
  source: str,
  fields: Fields,
  split: str = "train",
  part_bytes: int = 1 << 28,
  workdir: epath.PathLike = "",
) -> list[Part]:
  """The parts of a source.

  Args:
    source: a file, a folder or a glob; "tfds:NAME", "hf:ORG/NAME", a folder
      that either library saved; or "embedded".
    fields: of a record.
    split: of a source that has splits.
    part_bytes: larger files are cut, small texts put together.
    workdir: what the stages wrote into it is no part of a folder or glob.

  Raises:
    UserError: nothing matches, or a file of an unknown format.
  """
  if source == EMBEDDED:
    from miniplm_jax.corpus import embedded

    return embedded.list_parts()
  if not source:
    raise UserError(
      "no corpus is given", "config.corpus.source", "name a file or folder"
    )
  from miniplm_jax.corpus import datasets

  if not datasets.is_named(source):
    # Folders above it name domains, however it is written.
    source = os.fspath(gs.absolute(source))
  path = epath.Path(source)
  if source.startswith(TFDS) or datasets.is_tfds(path):
    return datasets.tfds_parts(source, fields, split, part_bytes)
  if source.startswith(HF) or datasets.is_saved(path):
    return datasets.hf_parts(source, fields, split, part_bytes)
  found = _match(path, source, split, gs.absolute(workdir) if workdir else None)
  root = _root(path)
  if _is(found[0], _MEGATRON):
    return list(_megatron_parts(root, found, fields))
  parts = []
  for file in found:
    if not _is(file, _TEXT):
      parts += _record_parts(root, file, fields, part_bytes)
  texts = [file for file in found if _is(file, _TEXT)]
  return [*parts, *_text_parts(root, texts, fields, part_bytes)]


def fingerprint(parts: Sequence[Part], domains: bool = True) -> str:
  """Of a whole source; without domains as schema version 1 had it."""
  return files.digest(
    [
      [
        part.name,
        part.fingerprint()
        if domains or not isinstance(part.fingerprint, Probe)
        else part.fingerprint.of_files,
      ]
      for part in parts
    ]
  )


_LINES, _JSON = (
  tuple(stem + packed for packed in ("", *formats.PACKED))
  for stem in (".jsonl", ".json")
)
_TEXT = (".txt", ".md")
_MEGATRON = (".bin", ".idx")
_ENDINGS = (*_LINES, *_JSON, ".parquet", *_TEXT, *_MEGATRON)


def _is(file: epath.Path, endings: Sequence[str]) -> bool:
  return file.name.lower().endswith(endings)


# Of a folder, what there is of the first of these: a data set may have a
# README beside it, and rows that were packed a list of their sources.
_KINDS = ((*_LINES, ".parquet"), _JSON, _TEXT)
# Lies beside data, and is none.
_ABOUT = re.compile(r"readme|licen[cs]e", re.IGNORECASE)


def _not_ours(
  there: Iterable[epath.Path], root: epath.Path, workdir: epath.Path | None
) -> list[epath.Path]:
  """Those that no stage wrote: nothing in the workdir if it is below the root.

  If it is not, its files may be the source: they lie beside ours.
  """
  if workdir is None:
    return list(there)
  if root in workdir.parents:
    return [file for file in there if workdir not in file.parents]
  ours = {workdir / name for name in (*FOLDERS, *FILES)}
  return [file for file in there if ours.isdisjoint((file, *file.parents))]


def _in_folder(
  path: epath.Path, split: str, workdir: epath.Path | None
) -> list[epath.Path]:
  """The files of a folder that are read, none of them hidden."""
  there = sorted(_not_ours(files.below(path), path, workdir))
  found = _pairs(there)
  for endings in _KINDS:
    found = found or [file for file in there if _is(file, endings)]
  left = {f for f in there if not _ABOUT.match(f.name)} - set(found)
  if found and left:
    counts = collections.Counter(file.suffix or file.name for file in left)
    each = ", ".join(f"{n} {ending}" for ending, n in sorted(counts.items()))
    _note(f"left out, as none is of the kind of {found[0].name}: {each}")
  found = _of_split(path, found, split)
  _refuse_gaps({f.with_suffix("") for f in found if f.suffix in _MEGATRON})
  return found


def _pairs(there: Sequence[epath.Path]) -> list[epath.Path]:
  """Packed rows: pairs of .bin and .idx, and what else has their NAME_k.

  A .bin alone may be anything.
  """
  halves = [file for file in there if file.suffix in _MEGATRON]
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
  root: epath.Path, found: list[epath.Path], split: str
) -> list[epath.Path]:
  """Those whose names say the split; what says none is for training."""
  asked = _SPLITS.get(split, split)
  named = {file: _split_in(root, file, asked) for file in found}
  splits = sorted(set(named.values()) - {""})
  if not splits:
    return found
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
  name = "/".join(parts[:-1] if _is(file, _TEXT) else parts).lower()
  if re.search(rf"(?<![^\W_]){re.escape(asked.lower())}(?![^\W_])", name):
    return asked
  words = (_SPLITS.get(w, w) for w in re.split(r"[\W_\d]+", name))
  return next((w for w in words if w in ("train", "validation", "test")), "")


@functools.cache
def _note(text: str):
  """Says it once in a process."""
  say("tokenize", text)


def _match(
  path: epath.Path, source: str, split: str, workdir: epath.Path | None
) -> list[epath.Path]:
  """The files of a source, sorted."""
  if path.is_dir():
    found = _in_folder(path, split, workdir)
  elif path.exists():
    found = [path]
  else:
    if gs.is_local(path):
      paths = set(glob.glob(source, recursive=True))  # ** twice: paths, too
      found = [epath.Path(p) for p in paths]
    else:
      found = list(path.parent.glob(path.name))
    found = _not_ours(found, _root(path), workdir)
  known = f"{', '.join(_ENDINGS)}, a folder of them or a glob; {TFDS}NAME, "
  known += f"{HF}ORG/NAME or a folder saved by either library"
  if not found:
    raise UserError(
      "no file of documents is there",
      f"config.corpus.source={source}",
      f"give {known}",
    )
  for file in found:
    if not _is(file, _ENDINGS):
      raise UserError("not a known format", str(file), f"give {known}")
    if not is_text(str(file)):
      # Domains and parts are named after files, in JSON and Parquet.
      todo = "rename the file, or the folder that has such a name"
      raise UserError("a name that is not UTF-8", repr(str(file)), todo)
  packed = [_is(file, _MEGATRON) for file in found]
  if any(packed) and not all(packed):
    raise UserError(
      "packed rows (.bin, .idx) and text are mixed",
      f"config.corpus.source={source}",
      "keep them in different folders",
    )
  return sorted(found)


def _root(source: epath.Path) -> epath.Path:
  """The folder that names are told from."""
  if source.exists():  # then it is no pattern, whatever its name
    return source
  return next(p for p in source.parents if not glob.has_magic(str(p)))


def _name(root: epath.Path, file: epath.Path) -> str:
  """A file's name below the root: a folder may be moved."""
  if root in file.parents:
    return str(file.relative_to(root))
  return file.name


def _domain(
  root: epath.Path, file: epath.Path, fields: Fields, own: str
) -> str:
  """Of documents that have none: a folder's below the root, or their own."""
  # As Hive and Spark lay out tables: NAME=VALUE is a column of all below it.
  pairs = [name.partition("=") for name in file.parts[:-1] if "=" in name]
  columns = {name: urllib.parse.unquote(value) for name, _, value in pairs}
  folder, _, below = _name(root, file).partition("/")
  folder = urllib.parse.unquote(folder.rpartition("=")[2]) if below else ""
  # NAME= has none, as a record whose field is empty.
  return columns.get(fields.domain) or folder or own


def _stem(file: epath.Path) -> str:
  """A file's name without its endings and, if there are several, its number."""
  return re.sub(r"-\d+-of-\d+$", "", file.name.split(".")[0])


def _record_parts(
  root: epath.Path, file: epath.Path, fields: Fields, part_bytes: int
) -> Iterator[Part]:
  """A file's parts: what can be cut is cut into pieces of so many bytes."""
  name = _name(root, file)
  domain = _domain(root, file, fields, _stem(file))
  probe = Probe((file,), () if domain == _stem(file) else (domain,))
  if _is(file, (".parquet",)):
    read, cuts = formats.read_parquet, formats.parquet_cuts(file, part_bytes)
    content = formats.parquet_content
  else:
    read, cuts = formats.read_json, formats.json_cuts(file, part_bytes)
    content = formats.json_content
    cuts = [(start, end, end - start) for start, end in cuts]
  for start, end, n_bytes in cuts:
    yield Part(
      name=name if len(cuts) == 1 else f"{name} [{start}:{end}]",
      read=functools.partial(read, file, start, end, fields, domain),
      n_bytes=n_bytes,
      fingerprint=probe,
      content=functools.partial(content, file, start, end, fields),
    )


def _text_parts(
  root: epath.Path, texts: list[epath.Path], fields: Fields, part_bytes: int
) -> Iterator[Part]:
  """Plain texts, each one document, many of them in a part."""
  cuts = pieces([file.stat().length for file in texts], part_bytes)
  for start, end, n_bytes in cuts:
    here = texts[start:end]
    domains = [_domain(root, f, fields, f.parent.name) for f in here]
    yield Part(
      name=f"{_name(root, here[0])} to {_name(root, here[-1])}",
      read=functools.partial(formats.read_texts, here, domains),
      n_bytes=n_bytes,
      fingerprint=Probe(here, domains),
      content=functools.partial(contents.of, here),
    )


def _megatron_parts(
  root: epath.Path, found: list[epath.Path], fields: Fields
) -> Iterator[Part]:
  """What was tokenized elsewhere: data_0.bin and .idx, or others' names."""
  from miniplm_jax.corpus import megatron

  stems = {os.fspath(file.with_suffix("")) for file in found}
  in_order = sorted(stems, key=lambda s: (len(s), s))  # 2 before 10
  prefixes = [p for stem in in_order for p in megatron.shards(stem)]
  for prefix in prefixes:
    data, index = (epath.Path(f"{prefix}{ending}") for ending in _MEGATRON)
    domain = _domain(root, data, fields, data.parent.name)
    yield Part(
      name=data.name,
      read=functools.partial(_read_megatron, prefix, domain),
      n_bytes=data.stat().length,
      fingerprint=Probe((data, index), (domain,)),
      content=functools.partial(contents.of, (data, index)),
    )


def _refuse_gaps(stems: Iterable[epath.Path]):
  """Raises UserError if numbers are missing; released data begin with 0."""
  numbers = collections.defaultdict(set)
  for name, number in map(_numbered, stems):
    if number is not None:
      numbers[name].add(number)
  for name, there in numbers.items():
    first = 0 if epath.Path(name).name == "data" else min(there)
    for number in range(first, max(there)):
      if number not in there:
        raise UserError(
          f"{epath.Path(name).name}_{number}.bin is missing",
          str(epath.Path(name).parent),
          "fetch it, or give the files by a glob if there is none",
        )


def _read_megatron(prefix: epath.PathLike, domain: str) -> Iterator[Packed]:
  from miniplm_jax.corpus import megatron

  with formats.parsing(lambda: str(prefix), "fetch it again"):
    rows = megatron.IndexedFile(prefix)
    if rows.documents is None:
      for i in range(len(rows)):
        yield Packed(rows[i], domain)
      return
    for first, end in itertools.pairwise(rows.documents.tolist()):
      ids = [np.zeros(0, np.int32), *(rows[i] for i in range(first, end))]
      yield Packed(np.concatenate(ids), domain, is_row=False)
