"""Our models as lm-evaluation-harness sees them: an `lm_eval.api.model.LM`.

Needs the extra `eval`. Nothing here imports torch, nor does what it imports
of lm_eval. Log-probs equal those of lm_eval's own `hf` model; what differs is
the order of the work, see `evaluation/texts.py`. Importing this registers
directories and hub ids as models of lm_eval.
"""

import collections
import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models import utils as model_utils

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress
from miniplm_jax.corpus import tokenizer as tokenizer_lib
from miniplm_jax.evaluation import requests as requests_lib
from miniplm_jax.evaluation import texts
from miniplm_jax.models import hub, sharding

MODEL = "miniplm_jax"  # its name in lm_eval
_DTYPES = ("float32", "bfloat16", "float16")
# What may be given in --model_args beside `pretrained`, and its type.
_SETTINGS = {
  "revision": str,
  "dtype": str,
  "data": int,
  "fsdp": int,
  "tensor": int,
  "batch_tokens": int,
  "max_length": int,
  "log_every_seconds": float,
}
# lm_eval's command gives these to every model. They are not read: batches are
# made by `batch_tokens`, devices are JAX's, and no remote code is ever run.
_NOT_READ = ("batch_size", "max_batch_size", "device", "trust_remote_code")


class JaxLM(TemplateLM):
  """A decoder with its tokenizer.

  Requests of lm_eval are texts; the rules by which they become tokens are
  those of `TemplateLM` and of lm_eval's `hf` model.
  """

  def __init__(
    self,
    model: texts.TextModel,
    *,
    batch_tokens: int = 16_384,
    max_length: int = 0,
    log_every_seconds: float = 30.0,
  ):
    """Compiles nothing yet; one compilation per shape of a batch.

    Args:
      model: what is generated ends at its eot_id, or one of its `eos_ids`.
      batch_tokens: inputs of a batch over all devices, padding included.
      max_length: inputs of a row; 0 is what the model says. Longer requests
        lose their beginning, rolling ones are cut into windows.
    """
    super().__init__()
    self._model, self._engine = model, model.engine
    self._eos_ids = {model.eot_id, *model.eos_ids}
    self._batch_tokens, self._every = int(batch_tokens), log_every_seconds
    self.max_length = int(max_length) or texts.max_length_of(model.decoder)
    self._prefix_text = self._engine.decode(
      [model.first_id], skip_special_tokens=False
    )
    self._scorer = texts.RowScorer(model, self._batch_tokens, log_every_seconds)
    self._numbers = requests_lib.Numbers()
    # By task: requests, those of them that lost their beginning, and documents
    # that a guess would get right.
    self.asked = collections.defaultdict(collections.Counter)
    # Choices of a question share its text.
    self._encode = functools.lru_cache(1024)(self._encode)

  @property
  def eot_token_id(self) -> int:
    """The id that ends a text."""
    return self._model.eot_id

  @property
  def prefix_token_id(self) -> int:
    """The id that a text without context follows."""
    return self._model.first_id

  def get_model_info(self) -> dict[str, Any]:
    """Returns what lm_eval's results say of the model."""
    return {
      "model_num_parameters": self._model.decoder.arch.parameters(),
      "model_dtype": self._model.dtype,
    }

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **unused: Any
  ) -> list[int]:
    """Ids; with what the tokenizer puts in front unless told otherwise."""
    if add_special_tokens is None:
      # A text that has the BOS already does not get it twice.
      add_special_tokens = not string.startswith(self._prefix_text)
    return list(self._encode(string, add_special_tokens))

  def _encode(self, text, add_special_tokens):
    ids = self._engine.encode(text, add_special_tokens=add_special_tokens).ids
    rows = self._model.decoder.arch.vocab_size
    if ids and max(ids) >= rows:
      raise UserError(
        f"the tokenizer's id {max(ids)} is beyond the model's {rows:,} rows",
        f"a text of lm_eval: {text[-60:]!r}",
        "leave the text out, or give the model's own tokenizer",
      )
    return tuple(ids)

  def chat_template(self, chat_template: bool | str = False) -> str:
    """None is applied; raises UserError if one is asked for."""
    if chat_template:
      raise UserError(
        "chat templates are not applied: models are read as base models",
        "--apply_chat_template",
        "leave it out",
      )
    return ""

  def loglikelihood(
    self, requests, disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """Σ log p of a text after its context, and whether it is greedy's."""
    pairs = []
    for request in requests:
      context, text = request.args
      if context:
        pairs.append((request.args, *self._encode_pair(context, text)))
        continue
      first, ids = [self.prefix_token_id], self.tok_encode(text, False)
      ids = ids[1:] if ids[:1] == first else ids  # a BOS of its own
      pairs.append((request.args, first, ids))
    choices = collections.Counter((r.task_name, r.doc_id) for r in requests)
    for request, (_, first, ids) in zip(requests, pairs):
      n = choices[request.task_name, request.doc_id]
      is_cut = len(first) + len(ids) > self.max_length + 1
      told = {"requests": 1, "cut": is_cut, "guessed": (n > 1) / n**2}
      self.asked[request.task_name].update(told)
    return self._loglikelihood_tokens(
      pairs, where=[requests_lib.name(r) for r in requests]
    )

  def _loglikelihood_tokens(
    self,
    requests,
    disable_tqdm: bool = False,
    where: Sequence[str] = (),
    **unused: Any,
  ) -> list[tuple[float, bool]]:
    """Answers `loglikelihood` for ((context, text), context ids, ids)."""
    answers = self._scored(
      [context + ids for _, context, ids in requests],
      [len(ids) for _, _, ids in requests],
      where or [f"a request of lm_eval: {pair}" for pair, _, _ in requests],
    )
    for (pair, _, _), answer in zip(requests, answers):
      if pair is not None:
        self.cache_hook.add_partial("loglikelihood", pair, answer)
    return answers

  def _scored(self, rows, scored, where) -> list[tuple[float, bool]]:
    """Σ log p of the last `scored` ids of each row, and if all are greedy."""
    for row, n, name in zip(rows, scored, where):
      if not 0 < n <= min(self.max_length, len(row) - 1):
        raise UserError(
          f"a text to be scored has {n:,} tokens after {len(row) - n:,}: "
          f"{self._engine.decode(row)[-60:]!r}",
          name,
          f"let it have 1 to {self.max_length:,} and something before; one "
          "that joins the character before it has none of its own",
        )
    rows = [row[-self.max_length - 1 :] for row in rows]
    answers = self._scorer(rows, scored, where)
    return [(-nll_sum, is_greedy) for nll_sum, is_greedy in answers]

  def loglikelihood_rolling(
    self, requests, disable_tqdm: bool = False
  ) -> list[float]:
    """Σ log p of whole texts, in windows of at most `max_length`.

    Also of a tokenizer that puts a BOS in front it is that of the text: the
    BOS is what the text follows, and is not scored. (lm_eval's hf model would
    score it after itself.)
    """
    each = (self.tok_encode(r.args[0], False) for r in requests)
    cut = self.prefix_token_id, self.max_length
    sums = self._scorer.sums(
      (texts.windows(self._model.own_ids(ids), *cut) for ids in each),
      list(map(requests_lib.name, requests)),
    )
    totals = [0.0 - nll_sum for nll_sum in sums]
    for request, total in zip(requests, totals):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
    return totals

  def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
    """Continues texts up to a stop sequence, greedily unless told to draw."""
    groups = collections.defaultdict(list)
    for i, request in enumerate(requests):
      groups[json.dumps(request.args[1], sort_keys=True)].append(i)
    answers = [""] * len(requests)
    every = self._every
    with Progress("evaluate", len(requests), "requests", every=every) as bar:
      for key, places in groups.items():
        of_key = [requests[i] for i in places]
        for i, text in self._generated(json.loads(key), of_key):
          request = requests[places[i]]
          answers[places[i]] = text
          self.cache_hook.add_partial("generate_until", request.args, text)
          bar.update()
    return answers

  def _generated(self, settings, requests) -> Iterable[tuple[int, str]]:
    """Place and continuation of requests that have the same settings."""
    prompts = [request.args[0] for request in requests]
    sampling, until = requests_lib.sampling(settings, requests[0].task_name)
    eos = self._engine.decode([self._model.eot_id], skip_special_tokens=False)
    until = model_utils.handle_stop_sequences(until, eos)
    new = sampling.max_new_tokens
    room = self.max_length - new
    if room < 1:
      raise UserError(
        f"{new:,} new tokens leave no room for a prompt in {self.max_length:,}",
        "max_gen_toks of a task",
        "ask for fewer, or give a larger max_length",
      )
    numbers = self._numbers.of(prompts, settings)
    place_of = {number: i for i, number in enumerate(numbers)}
    first = [self.prefix_token_id]
    for number, ids in texts.write(
      self._model,
      [self.tok_encode(text)[-room:] or first for text in prompts],
      numbers,
      self._batch_tokens,
      lambda number: requests_lib.name(requests[place_of[number]]),
      sampling=sampling,
      seed=0,
      eos_ids=self._ends(tuple(until)),
    ):
      text = self._engine.decode(ids, skip_special_tokens=True)
      text = model_utils.postprocess_generated_text(text, until, None)
      yield place_of[number], text

  @functools.lru_cache(8)  # noqa: B019  (the ids of 150,000 texts)
  def _ends(self, until: tuple[str, ...]) -> tuple[int, ...]:
    """Ids that end a row: of an end of text, or that hold a stop sequence.

    A sequence that several tokens make up is only cut off afterwards.
    """
    ends = {
      i for i, text in enumerate(self._texts) if any(u in text for u in until)
    }
    return tuple(sorted(ends | self._eos_ids))

  @functools.cached_property
  def _texts(self) -> list[str]:
    """The text of every id."""
    size = tokenizer_lib.vocab_size(self._engine)
    each = [[i] for i in range(size)]
    return self._engine.decode_batch(each, skip_special_tokens=False)


@register_model(MODEL)
class DirectoryLM(JaxLM):
  """A Hugging Face directory or hub id, as `lm_eval --model miniplm_jax`."""

  def __init__(self, pretrained: str = "", **settings: Any):
    """Loads it.

    Args:
      **settings: `revision` of a hub id; `dtype` of weights and computation,
        float32 by default; the sizes `data`, `fsdp` and `tensor` of the mesh;
        batch_tokens, max_length and log_every_seconds of `JaxLM`.

    Raises:
      UserError: there is no such setting, or the model cannot be loaded.
    """
    settings = _checked(pretrained, settings)
    directory = hub.resolve(pretrained, settings.pop("revision", "main"))
    mesh = sharding.make_mesh(
      settings.pop("data", 1),
      settings.pop("fsdp", -1),
      settings.pop("tensor", 1),
    )
    dtype = settings.pop("dtype", "float32")
    super().__init__(texts.TextModel.load(directory, mesh, dtype), **settings)


def _checked(pretrained: str, settings: dict[str, Any]) -> dict[str, Any]:
  """The settings that are read, with their types."""
  if not pretrained:
    raise UserError(
      "no model is named", "--model_args", "give pretrained=DIRECTORY"
    )
  checked = {}
  for name, value in settings.items():
    if name in _NOT_READ:
      continue
    if name not in _SETTINGS:
      raise UserError(
        f"{MODEL} has no argument {name}",
        f"--model_args {name}={value}",
        f"leave it out; there are pretrained, {', '.join(_SETTINGS)}",
      )
    try:
      checked[name] = _SETTINGS[name](value)
    except (TypeError, ValueError):
      checked[name] = None
    if checked[name] is None or (name == "dtype" and value not in _DTYPES):
      kind = ", ".join(_DTYPES) if name == "dtype" else _SETTINGS[name].__name__
      raise UserError(
        f"{name} is {value!r}", f"--model_args {name}={value}", f"give {kind}"
      )
  return checked
