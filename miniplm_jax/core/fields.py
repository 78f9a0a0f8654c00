"""A section of the configuration: fields with their default and their rule.

A section is a frozen dataclass whose fields are made by `number`, `word`,
`path` and their kind. What several fields must be together it says in
`_rules`. No section can hold what it refuses.
"""

import ctypes
import dataclasses
import operator
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from miniplm_jax.core.errors import UserError, did_you_mean

# What becomes a folder: no way out of the one that it is in, no flag, nothing
# hidden, nothing that a shell or a glob reads.
_NAME = re.compile(r"\w[\w.+@-]{0,99}")
_LEAST = 2.0**-126  # in float32; what is nearer to 0 is taken for it
NAME_TODO = (
  "give letters, digits and _ . + @ -, the first a letter, a digit or _, at "
  "most 100, and 200 bytes"
)

# (field or fields, whether they may be, what to do if not), and the value that
# is refused where it is not the fields' own.
Refusal = tuple[str, bool, str] | tuple[str, bool, str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
  """What the value of a field may be."""

  is_good: Callable[[Any], bool]  # takes a value of whatever type
  advice: str  # about a value that cannot be meant
  item: "Rule | None" = None  # of a tuple: the rule of each item
  # Matches a value; its last group is a file, a folder or a hub id.
  path: re.Pattern | None = None
  words: Collection[str] = ()  # the only ones; `advice` ends with them
  # Words that were, and what they are called now.
  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def first_bad(self, value: Any) -> tuple[Any, str] | None:
    """Returns what cannot be meant, the value or an item, and what to do."""
    if type(value) is str and value in self.renamed:
      return value, f"it is called {self.renamed[value]} now"
    if not self.is_good(value):
      advice = self.advice + ", ".join(w or repr(w) for w in self.words)
      # Of few words all are said.
      if len(self.words) > 5 and isinstance(value, str):
        advice = did_you_mean(value, self.words, advice)
      return value, advice
    bad = (self.item.first_bad(v) for v in value) if self.item else ()
    return next(filter(None, bad), None)

  def paths(self, value: Any) -> Iterator[str]:
    """Yields the files, folders and hub ids that a good value names."""
    if self.item:
      for v in value:
        yield from self.item.paths(v)
    elif self.path:
      yield self.path.fullmatch(value)[1]

  def expanded(self, value: Any) -> Any:
    """Puts the home folder for ~ into a good value that names a file."""
    if self.item:
      return tuple(map(self.item.expanded, value))
    if not self.path:
      return value
    start = self.path.fullmatch(value).start(1)
    return value[:start] + os.path.expanduser(value[start:])


class FieldError(UserError):
  """A field has a value that cannot be meant."""

  def __init__(self, section: str, field: str, value: Any, hint: str):
    self.field, self.value = field, value
    super().__init__(f"{field} is {shown(value)}", section, hint)


def shown(value: Any) -> str:
  """A value as it is written in Python, cut if it is long."""
  text = repr(value)
  return text if len(text) <= 200 else f"{text[:200]} …"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  """A part of the configuration, or the shape of a model.

  Raises:
    FieldError: a field has a value that cannot be meant, alone or beside the
      others.
    UserError: there is no such field.
  """

  def __init_subclass__(cls):
    cls.__repr__ = Section.__repr__  # dataclass would give it one of its own

  def __new__(cls, **options: Any):
    """Refuses names that are no fields."""
    names = [field.name for field in dataclasses.fields(cls)]
    for name in options.keys() - names:
      hint = did_you_mean(name, names, f"choose from {', '.join(names)}")
      raise UserError(f"no field {name!r}", cls.__name__, hint)
    return super().__new__(cls)

  def __repr__(self) -> str:
    """What differs from the defaults: those are many."""
    own = []
    for field in dataclasses.fields(self):
      is_section = field.default is dataclasses.MISSING
      default = field.default_factory() if is_section else field.default
      if (value := getattr(self, field.name)) != default:
        own.append(f"{field.name}={value!r}")
    return f"{type(self).__name__}({', '.join(own)})"

  def __post_init__(self):
    for name, rule in rules_of(type(self)).items():
      if getattr(getattr(self, name), "ndim", None) == 0:  # NumPy's number
        object.__setattr__(self, name, getattr(self, name).item())
      if bad := rule.first_bad(getattr(self, name)):
        raise FieldError(type(self).__name__, name, *bad)
    for names, is_good, hint, *value in self._rules():
      if not is_good:
        own = operator.attrgetter(*names.split(", "))(self)
        value = value[0] if value else own
        raise FieldError(type(self).__name__, names, value, hint)

  def _rules(self) -> Iterator[Refusal]:
    """Yields what several fields must be together."""
    return iter(())

  def replace(self, **changes: Any) -> Any:
    """The same with other values of some fields."""
    return dataclasses.replace(self, **changes)


def rules_of(section: type[Section]) -> dict[str, Rule]:
  """The rules of the fields of a section that are no sections themselves."""
  fields = dataclasses.fields(section)
  return {f.name: f.metadata["rule"] for f in fields if "rule" in f.metadata}


def sections_of(section: type[Section]) -> dict[str, type[Section]]:
  """The kinds of the sections that are fields of a section."""
  fields = dataclasses.fields(section)
  kinds = {f.name: f.metadata.get("section") for f in fields}
  return {name: kind for name, kind in kinds.items() if kind}


def section(kind: type[Section], **changes: Any) -> Any:
  """A field that is a section, with other defaults if `changes` has some."""
  return dataclasses.field(
    default_factory=lambda: kind(**changes), metadata={"section": kind}
  )


def _field(default: Any, rule: Rule) -> Any:
  return dataclasses.field(default=default, metadata={"rule": rule})


def _with_path(field: Any, pattern: str) -> Any:
  rule = field.metadata["rule"]
  path = re.compile(pattern, re.DOTALL)
  return _field(field.default, dataclasses.replace(rule, path=path))


def differ(names: Iterable[str]) -> bool:
  """Whether no name is there twice."""
  names = list(names)
  return len(set(names)) == len(names)


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


def weight_of(text: str) -> tuple[str, Fraction]:
  """Reads a domain and its exact weight, as "code=2"; else ValueError."""
  domain, _, written = text.rpartition("=")
  weight = _fraction(written)
  if not (domain and 0 <= weight <= 10**6):
    raise ValueError(text)
  return domain, weight


def field_of(text: str) -> tuple[str, str]:
  """Reads a name and a dotted path: "score=meta.score", "meta.score"."""
  name, has_path, path = text.partition("=")
  if not has_path:
    name, path = name.rpartition(".")[2], name
  if not is_name(name) or path != path.strip() or not path:
    raise ValueError(text)
  return name, path


def share_of(quota: str) -> tuple[str, Fraction, Fraction]:
  """Reads a domain and its exact shares, as "code=0.1:0.3"; else ValueError."""
  domain, _, shares = quota.rpartition("=")
  low, colon, high = shares.partition(":")
  least, most = _fraction(low or "0"), _fraction(high or "1")
  if not (domain and colon and 0 <= least <= most <= 1):
    raise ValueError(quota)
  return domain, least, most


def _fraction(written: str) -> Fraction:
  # Not 1e-999999999 as a fraction: that has a billion digits.
  return Fraction(written) if "/" in written else exact(float(written))


# ---- kinds of fields


def number(default: float, interval: str, *also: float) -> Any:
  """A number; a whole one of 64 bits if the default is whole.

  Args:
    default: its type is the field's.
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
  advice = f"give {kind} in {interval}"
  return _field(default, Rule(is_good, " or ".join([advice, *map(str, also)])))


def _bound(text: str) -> float:
  base, is_power, exponent = text.partition("^")
  return int(base) ** int(exponent) if is_power else float(text)


def seed(default: int, bits: int = 32) -> Any:
  """A seed: JAX takes 32 bits of one and drops the others."""
  return number(default, f"[0, 2^{bits})")


def switch(default: bool) -> Any:
  """True or False."""
  rule = Rule(lambda v: isinstance(v, bool), "give True or False")
  return _field(default, rule)


def word(default: str, words: Collection[str], **renamed: str) -> Any:
  """One of a few words, which may become more; `renamed` were such words."""
  rule = Rule(
    lambda v: type(v) is str and v in words,
    "choose from ",
    words=words,
    renamed=renamed,
  )
  return _field(default, rule)


def text(
  default: str, pattern: str = r".+", advice: str = "give a text"
) -> Any:
  """A text that a pattern matches as a whole, by default one not empty."""
  whole = re.compile(pattern, re.DOTALL)
  rule = Rule(lambda v: is_text(v) and bool(whole.fullmatch(v)), advice)
  return _field(default, rule)


def is_text(value: Any) -> bool:
  """Whether files and the operating system can hold it."""
  if type(value) is not str or "\0" in value:
    return False
  try:
    value.encode()
  except UnicodeEncodeError:  # half of a surrogate pair, from odd arguments
    return False
  return True


def name(default: str) -> Any:
  """A name that becomes a folder; if the default has "{method}" it may, too."""
  method = "{method}" if "{method}" in default else ""

  def is_good(value):
    if not value:
      return value == default
    if type(value) is not str:
      return False
    return is_name(value.replace(method, "m") if method else value)

  advice = NAME_TODO + (f"; {method} is the method's" if method else "")
  return _field(default, Rule(is_good, advice))


def path(default: str, is_needed: bool = False) -> Any:
  """A file, folder, glob or hub id; ~ is expanded by `expanded`."""
  pattern = r"\S(.*\S)?" + "|" * (not is_needed)
  return _with_path(text(default, pattern, "give a path"), "(.*)")


# Before a path: what lies there, if it is no model.
_KINDS = "ngram:", "table:"


def named_path(what: str) -> Any:
  """NAME=PATH, or NAME=ngram:PATH, NAME=table:PATH."""
  field = parsed("", _named, f"give NAME={what}")
  return _with_path(field, f"[^=]*=(?:{'|'.join(_KINDS)})?(.*)")


def _named(value: str):
  given, _, where = value.partition("=")
  if not is_name(given) or where != where.strip() or where in ("", *_KINDS):
    raise ValueError(value)


def parsed(default: str, parse: Callable[[str], Any], advice: str) -> Any:
  """A text that `parse` takes, without a ValueError or ArithmeticError."""

  def is_good(value):
    try:
      parse(value)
    except (ValueError, ArithmeticError):
      return False
    return True

  return _field(default, Rule(lambda v: is_text(v) and is_good(v), advice))


def several(item: Any, *default: Any) -> Any:
  """Any number of them, as a tuple."""
  rule = Rule(
    lambda v: isinstance(v, tuple | list),
    "give a tuple: ('a',) has one item",
    item.metadata["rule"],
  )
  return _field(default, rule)
