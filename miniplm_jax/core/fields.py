"""A field of the configuration: its default and its rule, in one place.

A section is a mapping of names to fields and sections. What several fields
must be together stands in `config_rules`.
"""

import ctypes
import dataclasses
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

# What becomes a folder: no way out of the one that it is in, no flag, nothing
# hidden, nothing that a shell or a glob reads.
_NAME = re.compile(r"\w[\w.+@-]{0,99}")
_LEAST = 2.0**-126  # in float32; what is nearer to 0 is taken for it
NAME_TODO = (
  "give letters, digits and _ . + @ -, the first a letter, a digit or _, at "
  "most 100, and 200 bytes"
)


@dataclasses.dataclass(frozen=True)
class Field:
  """What a value may be.

  Attributes:
    default: its value unless a config says otherwise.
    is_good: whether a value, of whatever type, can be meant.
    todo: what to do about one that cannot.
    item: of a tuple: what each of its items may be.
    path: matches a value; its last group is a file, a folder or a hub id.
    words: that it may be; `todo` ends with them.
  """

  default: Any
  is_good: Callable[[Any], bool]
  todo: str
  item: "Field | None" = None
  path: re.Pattern | None = None
  words: Collection[str] = ()

  def first_bad(self, value: Any) -> tuple[Any, str] | None:
    """What cannot be meant, it or one of its items, and what to do."""
    if not self.is_good(value):
      return value, self.todo + ", ".join(w or repr(w) for w in self.words)
    found = (self.item.first_bad(v) for v in value) if self.item else ()
    return next((bad for bad in found if bad), None)

  def paths(self, value: Any) -> Iterator[str]:
    """The files, folders and hub ids that a good value names."""
    if self.item:
      for v in value:
        yield from self.item.paths(v)
    elif self.path:
      yield self.path.fullmatch(value)[1]

  def expanded(self, value: Any) -> Any:
    """A good value with the home folder for ~ where it names a file."""
    if self.item:
      return tuple(map(self.item.expanded, value))
    if not self.path:
      return value
    start = self.path.fullmatch(value).start(1)
    return value[:start] + os.path.expanduser(value[start:])


def is_name(name: Any) -> bool:
  """Whether this may be the name of a folder."""
  if not isinstance(name, str) or not _NAME.fullmatch(name):
    return False
  return len(name.encode()) <= 200  # a disk has 255 for it and its endings


def exact(number: float) -> Fraction:
  """The number that was written: 0.29 and not 0.28999999999999998."""
  return Fraction(repr(float(number)))


def stride(rows: int, most: int) -> int:
  """Every how manieth of `rows` is taken if at most `most` are; 0 is all."""
  return max(-(-rows // most), 1) if most else 1


def of(share: float, total: int) -> int:
  """The whole number of `total` that a share is, rounded down."""
  return int(exact(share) * total)


# ---- kinds of fields


def number(default: float, interval: str, *also: float) -> Field:
  """A number; a whole one of 64 bits if the default is whole.

  Args:
    default: the default.
    interval: such as "(0, 1]" or "[0, 2^32)"; a whole number is below 2^31
      where nothing else is said: sizes are 32-bit on devices.
    *also: what it may be beside.
  """
  low, high = (_bound(end) for end in interval[1:-1].split(","))
  whole = isinstance(default, int)
  if whole and high == float("inf"):
    high, interval = 2**31, interval.replace("inf", "2^31")

  def is_good(value):
    # Not bool, which is an int. NaN is in no interval.
    if type(value) not in ((int,) if whole else (int, float)):
      return False
    # As it is computed with: 1e-300 is 0, 1 − 1e-12 is 1.
    single = value if whole else ctypes.c_float(value).value
    if value and abs(single) < _LEAST:
      return False
    above = low < single if interval[0] == "(" else low <= value
    below = single < high if interval[-1] == ")" else value <= high
    return value in also or (above and below)

  kind = "a whole number" if whole else "a number"
  todo = f"give {kind} in {interval}"
  return Field(default, is_good, " or ".join([todo, *map(str, also)]))


def _bound(text: str) -> float:
  base, is_power, exponent = text.partition("^")
  return int(base) ** int(exponent) if is_power else float(text)


def seed(default: int, bits: int = 32) -> Field:
  """A seed: JAX takes 32 bits of one and drops the others."""
  return number(default, f"[0, 2^{bits})")


def switch(default: bool) -> Field:
  """True or False."""
  return Field(default, lambda v: isinstance(v, bool), "give True or False")


def word(default: str, words: Collection[str]) -> Field:
  """One of a few words, which may become more."""
  return Field(
    default,
    lambda v: type(v) is str and v in words,
    "choose from ",
    words=words,
  )


def text(default: str, pattern: str = r".+", todo: str = "give a text"):
  """A text that a pattern matches as a whole, by default one not empty."""
  found = re.compile(pattern, re.DOTALL)
  return Field(default, lambda v: is_text(v) and found.fullmatch(v), todo)


def is_text(value: Any) -> bool:
  """Whether files and the operating system can hold it."""
  if type(value) is not str or "\0" in value:
    return False
  try:
    value.encode()
  except UnicodeEncodeError:  # half of a surrogate pair, from odd arguments
    return False
  return True


def name(default: str) -> Field:
  """A name that becomes a folder; if the default has "{method}" it may, too."""
  method = "{method}" if "{method}" in default else ""

  def is_good(value):
    if not value:
      return value == default
    if type(value) is not str:
      return False
    return is_name(value.replace(method, "m") if method else value)

  todo = NAME_TODO + (f"; {method} is the method's" if method else "")
  return Field(default, is_good, todo)


def path(default: str, is_needed: bool = False) -> Field:
  """A file, folder, glob or hub id; ~ is expanded by `expanded`."""
  found = text(default, r"\S(.*\S)?" + "|" * (not is_needed), "give a path")
  return dataclasses.replace(found, path=re.compile("(.*)", re.DOTALL))


def named_path() -> Field:
  """NAME=PATH."""
  found = parsed("", _named, "give NAME=DIRECTORY_OR_HUB_ID, a new name")
  return dataclasses.replace(found, path=re.compile("[^=]*=(.*)", re.DOTALL))


def _named(value: str):
  given, _, where = value.partition("=")
  if not is_name(given) or where != where.strip() or not where:
    raise ValueError(value)


def parsed(default: str, parse: Callable[[str], Any], todo: str) -> Field:
  """A text that `parse` takes, without a ValueError or ArithmeticError."""

  def is_good(value):
    try:
      parse(value)
    except (ValueError, ArithmeticError):
      return False
    return True

  return Field(default, lambda v: is_text(v) and is_good(v), todo)


def several(item: Field, *default: Any) -> Field:
  """Any number of them, as a tuple."""
  todo = "give a tuple: ('a',) has one item"
  return Field(default, lambda v: isinstance(v, tuple | list), todo, item)


# ---- sections

Section = Mapping[str, "Field | Section"]


def defaults(section: Section) -> dict[str, Any]:
  """The same tree, of default values."""
  return {
    key: found.default if isinstance(found, Field) else defaults(found)
    for key, found in section.items()
  }


def changed(section: Section, **values: Any) -> Section:
  """The section with other defaults."""
  new = {
    k: dataclasses.replace(section[k], default=v) for k, v in values.items()
  }
  return {**section, **new}
