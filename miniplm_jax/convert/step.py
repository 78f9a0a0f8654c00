"""Stage convert: the refined corpus in the words of another tokenizer."""

import collections

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.code import Version
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress, log
from miniplm_jax.core.step import Input, Step
from miniplm_jax.core.workdir import CONVERTED, GENERATED, MANIFEST, Workdir
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.corpus.step import own_tokenizer
from miniplm_jax.distillation import seqkd_step as seqkd_stage

STAGE = "convert"
_CODE = ("convert/rows.py", "convert/pieces.py")  # makes a shard


def steps(config, workdir: Workdir) -> list[Step]:
  """One step a student, if students have a tokenizer of their own."""
  if not config.student.tokenizer:
    return []
  names = config.names
  return [_step(config, workdir, n) for n in names]


def corpus_inputs(config, workdir: Workdir, student: str) -> dict[str, Input]:
  """What a stage that reads a student's corpus has as inputs.

  Args:
    config: the whole config.
    workdir: of the run.
    student: its name.

  Returns:
    "corpus", the teacher's; with a tokenizer of the student's, or if there is
    one, also the converted one, which `store.open_corpus` prefers, and that
    tokenizer's fingerprint, which is refused if the converted one is of
    another.
  """
  inputs: dict[str, Input] = {"corpus": workdir.corpus / MANIFEST}
  converted = workdir.student(student) / "corpus" / MANIFEST
  if config.student.tokenizer or converted.exists():
    inputs[CONVERTED] = converted
    inputs["tokenizer"] = lambda: _checked(config, converted)
  return inputs


def _checked(config, converted) -> str:
  """The tokenizer's fingerprint; what was converted must be of it."""
  given, made = _given(config.student), manifest_lib.read(converted)
  now = made.fingerprint_by("tokenizer", given) if made else given()
  wanted = _settings(config) | {"tokenizer": now}
  if made:
    found = made.settings | {"tokenizer": made.inputs["tokenizer"]}
    if difference := manifest_lib.first_difference(found, wanted):
      raise UserError(
        f"the corpus is not of the student's tokenizer: {difference}",
        str(converted),
        f"put the setting back, or convert again with --stages={STAGE} --force",
      )
  return wanted["tokenizer"]


def _given(student):
  from miniplm_jax.models import hub

  return hub.GivenTokenizer(student.tokenizer, student.tokenizer_revision)


def _settings(config) -> dict[str, object]:
  s, c = config.student, config.corpus
  return {
    "conversion": s.conversion,
    "eos_token": s.eos_token,
    "bos_token": s.bos_token,
    "max_length": c.max_length,
    "seed": c.seed,
  }


def _step(config, workdir: Workdir, names) -> Step:
  directory = workdir.student(names.student) / "corpus"
  s = config.student
  return Step(
    stage=STAGE,
    manifest=directory / MANIFEST,
    settings=_settings(config),
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      "selection": workdir.selection(names.selection) / MANIFEST,
      **seqkd_stage.corpus_inputs(config, workdir, names),
      "tokenizer": _given(s),
    },
    outputs=(directory,),
    code=Version(_CODE, ("tokenizers",), config.run.any_code),
    summary=f"selection {names.selection} and held-out rows → rows of up to "
    f"{config.corpus.max_length + 1} tokens of {s.tokenizer}, {s.conversion}",
    run=lambda inputs: _run(config, directory, inputs),
    is_host_only=True,
  )


def _run(config, directory, inputs):
  import numpy as np

  from miniplm_jax.convert import rows
  from miniplm_jax.convert.pieces import Source
  from miniplm_jax.corpus import columns, losses, store
  from miniplm_jax.corpus.pack import SentenceEnds

  corpus = store.open_corpus(inputs)
  corpus.check_tokenizer()
  source = Source(corpus)
  c, s, folder = config.corpus, config.student, directory / "tokenizer"
  encoder = own_tokenizer(s, folder, STAGE, "student")
  prints = {"tokenizer": encoder.fingerprint}
  made_by = manifest_lib.made_by(_settings(config), inputs, **prints)
  to = rows.Target(encoder, SentenceEnds(encoder), c.max_length, c.seed)
  one_to_one = s.conversion == "one_to_one"
  if GENERATED in inputs:
    rows_to_train = corpus.rows_of("train")
  else:
    rows_to_train = kept_rows(inputs["selection"])
  chosen = np.union1d(rows_to_train, corpus.rows_of("heldout"))
  parts, first = corpus.manifest.counts["rows_by_part"], 0
  every = config.run.log_every_seconds
  with Progress(STAGE, len(chosen), "rows", every=every) as progress:
    for part, n in enumerate(parts):
      of_part = range(first, first + n)
      first += n
      here = chosen[slice(*np.searchsorted(chosen, (of_part.start, first)))]
      names = store.shard_names(part, len(parts))
      if not store.has(directory, names, made_by):
        seen = collections.Counter()
        made = (
          rows.one_to_one(source, part, here, to, seen)
          if one_to_one
          else rows.repacked(source, part, of_part, here, to, seen)
        )
        details = {columns.MADE_BY: made_by}
        store.write_shard(directory, names, made, seen, details)
      progress.update(len(here), f"in part {part + 1}/{len(parts)}")
  counts, described = store.merge(directory, len(parts), made_by)
  _say_bytes(collections.Counter(counts))
  lost = losses.check(
    counts, STAGE, f"config.student.tokenizer={config.student.tokenizer}"
  )
  return {
    "tokenizer": encoder.fingerprint,
    "files": described,
    "counts": counts,
    "details": {
      "eos_id": encoder.eos_id,
      "bos_id": encoder.bos_id,
      "bos_token": encoder.bos_token,
      "vocab_size": encoder.vocab_size,
      "tokenizer": config.student.tokenizer,
      "share_of_bytes_lost": lost,
    },
  }


def _say_bytes(counts):
  """What became of the text, in a line."""
  text = counts["bytes_in"] + counts["bytes_taken_after"]
  cut = counts["bytes_left_before"] + counts["bytes_dropped"]
  text -= cut
  told = f"{text:,} bytes of text in"
  if cut:
    told += f" ({cut:,} more, of characters that rows cut, are left out)"
  told += f", {counts['bytes_out']:,} out"
  if counts["bytes_lost"]:
    told += f", {counts['bytes_lost']:,} lost with the tails of "
    told += f"{counts['rows_truncated']:,} rows and with "
    told += f"{counts['rows_lost']:,} of a token or none"
  elif text != counts["bytes_out"]:
    told += ": the new tokenizer normalizes text, or is not byte-level"
  log(STAGE, told)
