"""What lm_eval asks of a model: names, settings and numbers of its requests."""

import collections
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.models import utils as model_utils

from miniplm_jax.core.errors import UserError
from miniplm_jax.models.generation import Sampling

_NEW_TOKENS = 256  # if a request does not say, as lm_eval's hf model
# Settings of generation that are honored …
_HONORED = ("until", "do_sample", "max_gen_toks", "temperature")
_HONORED += ("top_k", "top_p")
# … and those that change nothing with these values, or None or False.
_NEUTRAL = {
  "num_beams": 1,
  "num_beam_groups": 1,
  "num_return_sequences": 1,
  "repetition_penalty": 1,
  "encoder_repetition_penalty": 1,
  "length_penalty": 1,
  "typical_p": 1,
  "min_p": 0,
  "epsilon_cutoff": 0,
  "eta_cutoff": 0,
  "no_repeat_ngram_size": 0,
  "diversity_penalty": 0,
  "min_length": 0,
  "min_new_tokens": 0,
  "presence_penalty": 0,
  "frequency_penalty": 0,
  "use_cache": True,
}


def name(request: Any) -> str:
  """The task and document of a request, for messages."""
  return f"task {request.task_name}, document {request.doc_id}"


def sampling(
  settings: Mapping[str, Any], where: str
) -> tuple[Sampling, list[str]]:
  """How to generate, and the stop sequences but for the end of a text.

  Args:
    settings: a task's generation_kwargs, under any of the names that lm_eval
      knows.
    where: the task, for messages.

  Raises:
    UserError: there is one that would change the text and is not implemented.
  """
  kwargs = model_utils.normalize_gen_kwargs(dict(settings), _NEW_TOKENS)
  for key, value in kwargs.items():
    if key in _HONORED or value is None or value is False:
      continue
    if key not in _NEUTRAL or value != _NEUTRAL[key]:
      raise UserError(
        f"{key} = {value!r} is not implemented",
        f"generation_kwargs of {where}, or --gen_kwargs",
        f"leave it out; there are {', '.join(_HONORED)}",
      )
  # Sequence and not string, and None is none.
  until = [u for u in kwargs["until"] if u]
  how = Sampling(
    kwargs["max_gen_toks"],
    temperature=kwargs.get("temperature", 1.0) if kwargs["do_sample"] else 0,
    top_k=kwargs.get("top_k") or 0,
    top_p=kwargs.get("top_p") or 1.0,
  )
  good = how.max_new_tokens >= 1 and how.temperature >= 0 and how.top_k >= 0
  if not good or not 0 < how.top_p <= 1:
    raise UserError(
      f"{how} cannot be drawn from",
      f"generation_kwargs of {where}, or --gen_kwargs",
      "give 1 token or more, a temperature and top_k of 0 or more, and a top_p "
      "in (0, 1]",
    )
  return how, until


class Numbers:
  """Numbers of requests, which seed their draws.

  They follow from what is asked and how often it was asked before, not from
  its place: neither batches nor other tasks change what is drawn, and one that
  is repeated is drawn anew, in whatever batch or call.
  """

  def __init__(self):
    self._asked: collections.Counter[int] = collections.Counter()

  def of(self, texts: Sequence[str], settings: Any) -> list[int]:
    """A number below 2³¹ for each, all different."""
    how, taken = json.dumps(settings, sort_keys=True), {}
    for text in texts:
      key = zlib.crc32(f"{how}\n{text}".encode())
      number = zlib.crc32(f"{self._asked[key]}".encode(), key) >> 1
      self._asked[key] += 1
      while number in taken:
        number = (number + 1) % 2**31
      taken[number] = None
    return list(taken)
