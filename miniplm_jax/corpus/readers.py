"""Documents from wherever they are: one list of parts for any source.

A part is read from start to end and becomes one shard of the corpus, so any
part can be made again without the others, by any process.
"""

import functools
import itertools
import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from miniplm_jax.core import contents, files, gs
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import folders, formats
from miniplm_jax.corpus.folders import HF, MEGATRON, TEXT, TFDS, is_of
from miniplm_jax.corpus.records import (
  Fields,
  Packed,
  Part,
  Probe,
  pieces,
)

EMBEDDED = "embedded"  # the text that every installation carries


def list_parts(
  source: str,
  fields: Fields,
  split: str = "train",
  part_bytes: int = 1 << 28,
  workdir: epath.PathLike = "",
  commit: str = "",
) -> list[Part]:
  """The parts of a source.

  Args:
    source: a file, a folder or a glob; "tfds:NAME", "hf:ORG/NAME", a folder
      that either library saved; or "embedded".
    fields: of a record.
    split: of a source that has splits.
    part_bytes: larger files are cut, small texts put together.
    workdir: what the stages wrote into it is no part of a folder or glob.
    commit: of the hub; "" is today's.

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
    return datasets.hf_parts(source, fields, split, part_bytes, commit)
  ours = gs.absolute(workdir) if workdir else None
  found = folders.match(path, source, split, ours)
  root = folders.root_of(path)
  if is_of(found[0], MEGATRON):
    return list(_megatron_parts(root, found, fields))
  parts = []
  for file in found:
    if not is_of(file, TEXT):
      parts += _record_parts(root, file, fields, part_bytes)
  texts = [file for file in found if is_of(file, TEXT)]
  return [*parts, *_text_parts(root, texts, fields, part_bytes)]


def fingerprint(parts: Sequence[Part], domains: bool = True) -> str:
  """Of a whole source; without domains as schema version 1 had it."""
  return files.digest(
    [
      [
        part.short_name or part.name,
        part.fingerprint()
        if domains or not isinstance(part.fingerprint, Probe)
        else part.fingerprint.of_files,
      ]
      for part in parts
    ]
  )


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
  if is_of(file, (".parquet",)):
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
    data, index = (epath.Path(f"{prefix}{ending}") for ending in MEGATRON)
    domain = _domain(root, data, fields, data.parent.name)
    yield Part(
      name=_name(root, data),
      short_name=data.name,
      read=functools.partial(_read_megatron, prefix, domain),
      n_bytes=data.stat().length,
      fingerprint=Probe((data, index), (domain,)),
      content=functools.partial(contents.of, (data, index)),
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
