"""Stage convert: the refined corpus in the words of another tokenizer."""

import collections
import functools
from collections.abc import Mapping

from etils import epath, epy

from miniplm_jax.config import CorpusConfig, RunConfig, StudentConfig
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core import pieces
from miniplm_jax.core.code import Version
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Input, Policy, Step
from miniplm_jax.core.workdir import CONVERTED, GENERATED, MANIFEST, Workdir
from miniplm_jax.corpus import own_tokenizer

with epy.lazy_imports():
  import numpy as np

  from miniplm_jax.corpus import (
    columns,
    convert,
    convert_text,
    kept_rows,
    losses,
    store,
  )
  from miniplm_jax.models import hub

STAGE = "convert"
_CODE = ("corpus/convert.py", "corpus/convert_text.py")  # makes a shard


def step(
  student: StudentConfig,
  corpus: CorpusConfig,
  folder: epath.Path,
  inputs: Mapping[str, Input],
  selection: str,
  run: RunConfig,
) -> Step:
  """Returns the conversion of what one student trains on.

  Inputs are "corpus", "selection", of that name, and the generated corpus if
  there is one.
  """
  return Step(
    stage=STAGE,
    manifest=folder / MANIFEST,
    settings=_settings(student, corpus),
    inputs={**inputs, "tokenizer": _given(student)},
    outputs=(folder,),
    code=Version(_CODE, ("tokenizers",), run.any_code),
    summary=f"selection {selection} and held-out rows → rows of up to "
    f"{corpus.max_length + 1} tokens of {student.tokenizer}, "
    f"{student.conversion}",
    run=lambda inputs: _run(student, corpus, folder, run, inputs),
    policy=Policy(is_host_only=True),
  )


def corpus_inputs(
  student: StudentConfig, corpus: CorpusConfig, workdir: Workdir, name: str
) -> dict[str, Input]:
  """Returns what a stage that reads a student's corpus has as inputs.

  They are "corpus", the teacher's; with a tokenizer of the student's, or if
  there is one, also the converted one, which `store.open_corpus` prefers, and
  that tokenizer's fingerprint, which is refused if the converted one is of
  another.
  """
  inputs: dict[str, Input] = {"corpus": workdir.corpus / MANIFEST}
  converted = workdir.student(name) / "corpus" / MANIFEST
  if student.tokenizer or converted.exists():
    inputs[CONVERTED] = converted
    inputs["tokenizer"] = lambda: _checked(student, corpus, converted)
  return inputs


def _checked(
  student: StudentConfig, corpus: CorpusConfig, converted: epath.Path
) -> str:
  """The tokenizer's fingerprint; what was converted must be of it."""
  given, manifest = _given(student), manifest_lib.read(converted)
  if manifest is None:
    return given()
  now = manifest.fingerprint_by("tokenizer", given)
  then = manifest.settings | {"tokenizer": manifest.inputs["tokenizer"]}
  settings = _settings(student, corpus) | {"tokenizer": now}
  if difference := manifest_lib.first_difference(then, settings):
    raise UserError(
      f"the corpus is not of the student's tokenizer: {difference}",
      str(converted),
      f"put the setting back, or convert again with --stages={STAGE} --force",
    )
  return now


def _given(student: StudentConfig) -> "hub.GivenTokenizer":
  return hub.GivenTokenizer(student.tokenizer, student.tokenizer_revision)


def _settings(
  student: StudentConfig, corpus: CorpusConfig
) -> dict[str, object]:
  return {
    "conversion": student.conversion,
    "eos_token": student.eos_token,
    "bos_token": student.bos_token,
    "max_length": corpus.max_length,
    "seed": corpus.seed,
  }


def _run(
  student: StudentConfig,
  corpus: CorpusConfig,
  folder: epath.Path,
  run: RunConfig,
  inputs: Mapping[str, Manifest],
):
  old = store.open_corpus(inputs)
  decoder = convert_text.RowDecoder(old)
  encoder = own_tokenizer.copied(
    student, folder / "tokenizer", STAGE, "student"
  )
  made_by = manifest_lib.made_by(
    _settings(student, corpus), inputs, tokenizer=encoder.fingerprint
  )
  to = convert.Target(encoder, corpus.max_length, corpus.seed)
  is_one_to_one = student.conversion == "one_to_one"
  make = convert.one_to_one if is_one_to_one else convert.repacked
  if GENERATED in inputs:
    rows_to_train = old.rows_of("train")
  else:
    rows_to_train = kept_rows.kept_rows(inputs["selection"])
  chosen = np.union1d(rows_to_train, old.rows_of("heldout"))
  ends = np.cumsum([0, *old.manifest.counts["rows_by_part"]])
  row_ids = np.split(chosen, np.searchsorted(chosen, ends[1:-1]))
  parts = len(row_ids)
  names = [store.shard_names(part, parts) for part in range(parts)]

  def write(part: int, progress):
    of_part = range(ends[part], ends[part + 1])
    rows = convert_text.PartRows(decoder, of_part, row_ids[part], part)
    counts = collections.Counter()
    converted, details = make(rows, to, counts), {columns.MADE_BY: made_by}
    store.write_shard(folder, names[part], converted, counts, details)
    progress(len(row_ids[part]), f"in part {part + 1}/{parts}")

  pieces.fill(
    STAGE,
    list(map(len, row_ids)),
    lambda part: store.has(folder, names[part], made_by),
    lambda part, progress: functools.partial(write, part, progress),
    run.log_every_seconds,
  )
  counts, described = store.merge(folder, parts, made_by)
  _say_bytes(collections.Counter(counts))
  where = f"config.student.tokenizer={student.tokenizer}"
  return {
    "tokenizer": encoder.fingerprint,
    "files": described,
    "counts": counts,
    "details": encoder.details
    | {
      "tokenizer": student.tokenizer,
      "share_of_bytes_lost": losses.check(counts, STAGE, where),
    },
  }


def _say_bytes(counts: collections.Counter):
  """Says what became of the text, in a line."""
  cut = counts["bytes_left_before"] + counts["bytes_dropped"]
  text = counts["bytes_in"] + counts["bytes_taken_after"] - cut
  line = f"{text:,} bytes of text in"
  if cut:
    line += f" ({cut:,} more, of characters that rows cut, are left out)"
  line += f", {counts['bytes_out']:,} out"
  if counts["bytes_lost"]:
    line += f", {counts['bytes_lost']:,} lost with the tails of "
    line += f"{counts['rows_truncated']:,} rows and with "
    line += f"{counts['rows_lost']:,} of a token or none"
  elif text != counts["bytes_out"]:
    line += ": the new tokenizer normalizes text, or is not byte-level"
  log(STAGE, line)
