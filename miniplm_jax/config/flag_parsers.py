"""What the command line takes for lists and shapes beside Python's literals.

`--config.baselines=pretrain,proxy` is a list of two, and
`--config.student.model=qwen-500m` a shape by its name.
"""

import ast
import re

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags, tuple_parser

from miniplm_jax.core.errors import did_you_mean
from miniplm_jax.models.architecture import PRESETS


class _ListParser(tuple_parser.TupleParser):
  """A tuple in Python, or words and NAME=FORMULA with commas between them.

  Commas in parentheses are a formula's. Words have no spaces: a text with a
  comma is one item.
  """

  def parse(self, argument):
    if argument == "":  # --config.baselines= is none
      return ()
    try:
      items = super().parse(argument)
    except ValueError:  # code=2,mail=0.5
      items = (argument,)
    if items != (argument,):
      return items
    words = []
    for piece in argument.split(","):
      if words and words[-1].count("(") > words[-1].count(")"):
        words[-1] += f",{piece}"
      else:
        words.append(piece)
    is_list = all(re.fullmatch(r"\S+|[\w.+@-]+=.*\S", word) for word in words)
    return tuple(words) if is_list else items


class _SectionParser(flags.ArgumentParser):
  """A dict in Python, or the name of a model's shape."""

  def parse(self, argument):
    if isinstance(argument, ConfigDict):  # the config's own
      return argument
    try:
      value = PRESETS.get(argument) or ast.literal_eval(argument)
      return ConfigDict(value)
    except (ValueError, SyntaxError, TypeError, AttributeError) as e:
      hint = f"give a dict, or a shape of {', '.join(PRESETS)}"
      raise ValueError(did_you_mean(argument, PRESETS, hint)) from e


def register():
  """Lets config_flags use them from now on."""
  config_flags.register_flag_parser_for_type(tuple, _ListParser())
  config_flags.register_flag_parser_for_type(ConfigDict, _SectionParser())
