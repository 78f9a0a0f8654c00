"""The section of the config that says how text becomes rows."""

import dataclasses
import functools
from typing import Any

from miniplm_jax.core import fields as f
from miniplm_jax.core.fields import Section

# Of every corpus's index: no field may be called so.
_COLUMNS = (
  *("row_id", "domain", "split", "n_tokens", "n_bytes", "hash"),
  *("document_ids", "document_tokens"),
)
# A token such as <|endoftext|>, </s> or [EOS]; none that a text has by itself.
SPECIAL = r"<.+>|\[.+\]"
SPECIAL_ADVICE = "give a special token, such as <|endoftext|>"


def revision():
  """A field that names what is read of a hub."""
  return f.text("main", r"\S+", "give a branch, a tag or a commit")


def bos_rule(section: Section) -> f.Refusal:
  """What a section's BOS must be beside its end of a document."""
  good = not section.bos_token or section.bos_token != section.eos_token
  return "bos_token", good, "give none: a text follows the end of another"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig(Section):
  """Text → rows."""

  # Files (.jsonl and .json, with .gz, .zst, .bz2 or .xz; .parquet; .txt,
  # .md; ids as .bin with .idx), a folder, a glob; tfds:NAME, hf:ORG/NAME
  # or a folder that either library saved; or "embedded", text that every
  # installation carries.
  source: str = f.path("")
  split: str = f.text("train")  # of a source that has splits
  # Larger files are cut into parts of so many bytes, small texts are
  # put together: the unit of parallel work and of resuming. Each is three
  # files that take milliseconds; of single lines they would take hours.
  part_bytes: int = f.number(1 << 28, "[16, 2^63)")
  text_field: str = f.text("text")
  # Dotted path; a document without it has that of its folder or file.
  domain_field: str = f.text("domain", ".*")
  # Numbers of a document that rows carry, for field("NAME") in criteria:
  # NAME=DOTTED.PATH, or a dotted path whose last part is the name.
  fields: tuple[str, ...] = f.several(
    f.parsed("", f.field_of, "give NAME=DOTTED.PATH")
  )
  # Dotted path of its id, by which numbers are joined later; "" is none.
  id_field: str = f.text("", ".*")
  # Dotted path of a document's own split: train (D), reference, heldout or
  # teacher. Rows of a document without it are drawn by the shares below.
  split_field: str = f.text("", ".*")
  # A directory or hub id with tokenizer.json, or "train".
  tokenizer: str = f.path("Qwen/Qwen1.5-1.8B", is_needed=True)
  tokenizer_revision: str = revision()  # of a hub id
  # of a tokenizer that is trained here
  vocab_size: int = f.number(0, "[0, inf)")
  eos_token: str = f.text("<|endoftext|>", SPECIAL, SPECIAL_ADVICE)
  # What rows begin with, and each document in them: "auto" is what the
  # tokenizer puts before a text (Llama, Gemma, Mistral; Qwen: nothing).
  bos_token: str = f.text("auto", f"(auto|{SPECIAL})?", SPECIAL_ADVICE)
  # inputs of a row; it holds one id more
  max_length: int = f.number(1024, "[2, 2^24]")
  seed: int = f.number(10, "[-2^63, 2^63)")  # of the split
  # D_ref, paper: 5B of 105B tokens
  reference_share: float = f.number(5 / 105, "[0, 1)")
  # for evaluation, in no other split
  heldout_share: float = f.number(0.001, "[0, 1)")
  # for a teacher that is trained here
  teacher_share: float = f.number(0.0, "[0, 1)")

  def _rules(self):
    good = self.tokenizer != "train" or self.vocab_size >= 257
    hint = "give 257 or more: 256 bytes and the end of a document"
    yield "vocab_size", good, hint
    total = self.reference_share + self.heldout_share + self.teacher_share
    names = "reference_share, heldout_share, teacher_share"
    yield names, total < 1, "leave some for D"
    yield bos_rule(self)
    good = f.differ([*self.field_names, *_COLUMNS])
    hint = f"give each a name of its own, none of {', '.join(_COLUMNS)}"
    yield "fields", good, hint

  @property
  def field_names(self) -> tuple[str, ...]:
    """What `fields` are called in criteria."""
    return tuple(f.field_of(text)[0] for text in self.fields)

  @functools.cached_property
  def field_paths(self) -> tuple[str, ...]:
    """Where a record has `fields`."""
    return tuple(f.field_of(text)[1] for text in self.fields)

  @property
  def own_paths(self) -> tuple[str, str, str, str]:
    """Where a record has text, domain, id and split; "" is not read."""
    return self.text_field, self.domain_field, self.id_field, self.split_field

  @property
  def read_paths(self) -> list[str]:
    """Where a record has whatever is read of it."""
    return list(filter(None, (*self.own_paths, *self.field_paths)))

  @property
  def carried(self) -> dict[str, Any]:
    """What rows have of documents, as settings: nothing, if nothing is."""
    every = {"fields": list(self.fields), "id_field": self.id_field}
    every["split_field"] = self.split_field
    return {name: value for name, value in every.items() if value}
