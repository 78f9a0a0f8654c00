"""Our models as lm-evaluation-harness sees them: an `lm_eval.api.model.LM`.

Needs the extra `eval`. Nothing here imports torch, nor does what it imports
of lm_eval. Log-probs equal those of lm_eval's own `hf` model; what differs is
the order of the work, see `evaluation/texts.py`.
"""

import collections
import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from lm_eval.api.model import TemplateLM
from lm_eval.models import utils as model_utils

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress
from miniplm_jax.corpus import tokenizer as tokenizer_lib
from miniplm_jax.evaluation import requests as requests_lib
from miniplm_jax.evaluation import texts
from miniplm_jax.models import generation, placement


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
    self._model, self._mesh = model.decoder, model.mesh
    self._engine, self._dtype = model.engine, jnp.dtype(model.dtype)
    self._eot_id, self._prefix_id = model.eot_id, model.first_id
    self._own_ids = model.own_ids
    self._eos_ids = {model.eot_id, *model.eos_ids}
    self._batch_tokens, self._every = int(batch_tokens), log_every_seconds
    self.max_length = int(max_length) or texts.max_length_of(model.decoder)
    self._prefix_text = self._engine.decode(
      [self._prefix_id], skip_special_tokens=False
    )
    self._scorer = texts.RowScorer(model, self._batch_tokens, log_every_seconds)
    self._numbers = requests_lib.Numbers()
    # What was asked: choices by task and document, requests by task that lost
    # their beginning.
    self.choices: collections.Counter[tuple[str, int]] = collections.Counter()
    self.cut: collections.Counter[str] = collections.Counter()
    # Choices of a question share its text.
    self._encode = functools.lru_cache(1024)(self._encode)

  @property
  def eot_token_id(self) -> int:
    """The id that ends a text."""
    return self._eot_id

  @property
  def prefix_token_id(self) -> int:
    """The id that a text without context follows."""
    return self._prefix_id

  def get_model_info(self) -> dict[str, Any]:
    """Returns what lm_eval's results say of the model."""
    return {
      "model_num_parameters": self._model.arch.parameters(),
      "model_dtype": str(self._dtype),
    }

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **unused: Any
  ) -> list[int]:
    """Ids; with what the tokenizer puts in front unless told otherwise."""
    if add_special_tokens is None:
      # A text that has the BOS already does not get it twice.
      add_special_tokens = not string.startswith(self._prefix_text)
    return list(self._encode(string, add_special_tokens))

  def _unprefixed(self, text: str) -> list[int]:
    """Ids of a text without the BOS, which it may have itself."""
    ids = self.tok_encode(text, add_special_tokens=False)
    return ids[1:] if ids[:1] == [self.prefix_token_id] else ids

  def _rolling_ids(self, text: str) -> list[int]:
    """The ids to score."""
    return self._own_ids(self.tok_encode(text, add_special_tokens=False))

  def _encode(self, text, add_special_tokens):
    ids = self._engine.encode(text, add_special_tokens=add_special_tokens).ids
    rows = self._model.arch.vocab_size
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
      first = [self.prefix_token_id]
      pairs.append((request.args, first, self._unprefixed(text)))
    for request, (_, first, ids) in zip(requests, pairs):
      self.choices[request.task_name, request.doc_id] += 1
      is_cut = len(first) + len(ids) > self.max_length + 1
      self.cut[request.task_name] += is_cut
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
    windows, owners = [], []
    for i, request in enumerate(requests):
      ids = self._rolling_ids(request.args[0])
      own = [*texts.windows(ids, self.prefix_token_id, self.max_length)]
      windows += own
      owners += [i] * len(own)
    totals = [0.0] * len(requests)
    answers = self._scored(
      [context + ids for context, ids in windows],
      [len(ids) for _, ids in windows],
      [requests_lib.name(requests[i]) for i in owners],
    )
    for i, (log_p, _) in zip(owners, answers):
      totals[i] += log_p
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
    eos = self._engine.decode([self._eot_id], skip_special_tokens=False)
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
    program = self._program(sampling, tuple(until))
    rows = [
      self.tok_encode(text)[-room:] or [self._prefix_id] for text in prompts
    ]
    batches = texts.prompts(rows, numbers, new, self._batch_tokens, self._mesh)
    run = functools.partial(program, self._model)
    for drawn in placement.run_rows(run, batches, self._mesh):
      for number, ids, n, good in zip(drawn.row_B, *drawn.values):
        i = place_of[int(number)]
        if not good:
          raise UserError(
            "the model's logits are not finite",
            requests_lib.name(requests[i]),
            "its weights hold NaN or overflow; try float32",
          )
        text = self._engine.decode(ids[:n].tolist(), skip_special_tokens=True)
        yield i, model_utils.postprocess_generated_text(text, until, None)

  @functools.lru_cache(8)  # noqa: B019  (a program is as large as the model)
  def _program(self, sampling, until):
    """Generation that ends a row at a token that holds a stop sequence.

    A sequence that several tokens make up is only cut off afterwards.
    """
    ends = {
      i for i, text in enumerate(self._texts) if any(u in text for u in until)
    }
    return generation.compiled(
      self._mesh,
      sampling=sampling,
      seed=0,
      eos_ids=tuple(sorted(ends | self._eos_ids)),
      vocabulary=min(len(self._texts), self._model.arch.vocab_size),
      dtype=self._dtype,
    )

  @functools.cached_property
  def _texts(self) -> list[str]:
    """The text of every id."""
    size = tokenizer_lib.vocab_size(self._engine)
    each = [[i] for i in range(size)]
    return self._engine.decode_batch(each, skip_special_tokens=False)
