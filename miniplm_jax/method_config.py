"""What methods beyond a choice of rows can be told, and what may be said.

Sections of `config.default()`, and their rules for `config_rules.check`.
"""

import re
from collections.abc import Callable

from ml_collections import ConfigDict

from miniplm_jax.methods import METHODS, methods, uses_generated, uses_proxy

_DTYPES = ("float32", "bfloat16")
# Objectives whose kernels have no z-loss.
_NO_Z = ("soft_labels", "sparse_kd")


def sections(small: ConfigDict, train: Callable[..., ConfigDict]):
  """The fields of each method.

  Args:
    small: shape of a model of the proxy's size.
    train: makes a train section.
  """
  return {
    # Method proxy, Appendix E: a small model learns the score on a sample
    # and predicts it for all of D. The paper does not give the recipe.
    "proxy": {
      "name": "proxy",  # scores/<name>
      # Share of D to learn from; it is tested on all other rows that were
      # scored. Keep it small: both models score these rows.
      "sample": 0.01,
      # Begin with the reference's weights; the shapes must be equal.
      "from_reference": False,
      "model": small,
      "train": train(steps=2000, warmup_steps=200, shuffle=True),
    },
    # Method seqkd: the teacher goes on after the first tokens of a row. The
    # paper has 768 of 1024, and does not say how it samples.
    "seqkd": {
      "prompt_share": 0.75,  # of max_length; the teacher fills up the row
      "temperature": 1.0,  # 0 takes the likeliest token
      "top_p": 1.0,  # only the likeliest with this probability together
      "seed": 10,
      "rows": 0,  # at most so many; 0 is as many as training takes
      "batch_size": 128,  # rows at a time, over all devices
      "rows_per_part": 8192,  # unit of resuming
      "dtype": "bfloat16",  # of weights, computation and cache
    },
    # Of vanilla_kd and miniplm_kd: (1 - weight) of the next-token loss and
    # weight of the teacher's soft labels, over the whole vocabulary.
    "kd": {
      "weight": 0.5,
      # Of the teacher's and the student's soft labels; their loss is
      # multiplied by its square (Hinton et al. 2015). The paper's is 1.
      "temperature": 1.0,
      "dtype": "",  # the teacher's weights and computation; "" is train's
    },
    # Method minillm, arXiv 2306.08543: the student continues rows.
    "minillm": {
      # Of max_length: the prompt. The paper has 768 + 256 tokens.
      "prompt_share": 0.75,
      "teacher_mix": 0.2,  # the teacher's share in what is drawn from
      "lm_weight": 1.0,  # of the next-token loss of the rows
    },
    # Stage logits, for the two methods that follow. It computes as `score`
    # does: score.dtype, lengths, batch_tokens.
    "logits": {
      # Unit of resuming, held in memory: 4 to 6 bytes a token and id.
      "rows_per_part": 1024,
    },
    # Method sparse_kd: the teacher's words at each token, but few of them.
    "sparse_kd": {
      # sampling: drawn from p, unbiased (arXiv 2503.16870); top_k: the
      # likeliest, biased.
      "kind": "sampling",
      "ids": 50,  # of a token: samples, or k
      "seed": 10,  # of the samples
      "weight": 0.5,  # of the teacher's words; the label has the rest
      "normalise": False,  # of top_k: let the probabilities sum up to 1
    },
    # Method token_selection, arXiv 2404.07965: the tokens of a batch whose
    # loss is most above a frozen model's.
    "token_selection": {
      "model": "reference",  # the frozen model, or teacher
      "ratio": 0.6,  # of the tokens
    },
  }


def rules(config, among, at_least):
  """Rules as those of `config_rules`, and the makers of two kinds of them."""
  yield from _proxy_rules(config)
  yield from _seqkd_rules(config, among, at_least)
  yield from _kd_rules(config, among)
  yield from _minillm_rules(config)
  yield from _logits_rules(config, among, at_least)
  yield from _model_rules(config)


def _model_rules(config):
  """Methods that run another model need its weights, and its tokens."""
  reads = {
    "vanilla_kd": "teacher",
    "miniplm_kd": "teacher",
    "minillm": "teacher",
    "seqkd": "teacher",
    "sparse_kd": "teacher",
    "token_selection": config.token_selection.model,
  }
  tokenizer = config.student.tokenizer
  for method in methods(config):
    role = reads.get(method)
    scores = config[role].scores if role else ""
    todo = f"give its weights, or another method: {method} runs it"
    yield f"{role}.scores", scores, not scores, todo
    good = not (role and tokenizer) or method == "seqkd"
    todo = f"give none, or another method: {method} needs the corpus's tokens"
    yield "student.tokenizer", tokenizer, good, todo
    good = not config.train.z_loss or METHODS[method].objective not in _NO_Z
    todo = f"give 0: {method} does not have it"
    yield "train.z_loss", config.train.z_loss, good, todo


def _proxy_rules(config):
  """Which rows are scored, and what the proxy may be; as `_rules`."""
  share, proxy = config.score.share, config.proxy
  yield "score.share", share, 0 < share <= 1, "give a number in (0, 1]"
  yield (
    "score.seed",
    config.score.seed,
    config.score.seed >= 0,
    "give 0 or more",
  )
  good = share == 1 or set(methods(config)) == {"proxy"}
  todo = "use method proxy alone, or 1: other methods need every row's score"
  yield "score.share", share, good, todo
  given = [r for r in ("teacher", "reference") if config[r].scores]
  todo = f"give 1: {' and '.join(given)}.scores must be of every row"
  yield "score.share", share, share == 1 or not given, todo
  good = 0 < proxy.sample < share
  todo = "give more than 0 and less than score.share: the rest tests the proxy"
  yield "proxy.sample", proxy.sample, good or not uses_proxy(config), todo
  taken = {config.teacher.name, config.reference.name}
  taken |= {text.partition("=")[0] for text in config.score.more}
  good = proxy.name not in taken and re.fullmatch(r"\w[\w.-]*", proxy.name)
  yield "proxy.name", proxy.name, good, "give a name of its own"
  tied, todo = proxy.model.tie_word_embeddings, "say True: it has no such head"
  yield "proxy.model.tie_word_embeddings", tied, tied, todo
  good = not (proxy.from_reference and config.reference.scores)
  todo = "say False: there are scores of the reference, not its weights"
  yield "proxy.from_reference", proxy.from_reference, good, todo
  value = proxy.train.z_loss
  yield "proxy.train.z_loss", value, not value, "give 0: it has no logits"
  ranks, todo = config.select.definition, "say --config.method=proxy"
  yield "select.definition", ranks, ranks != "proxy", todo


def _seqkd_rules(config, among, at_least):
  """Those of section seqkd, and what its method needs; as `_rules`."""
  c, length = config.seqkd, config.corpus.max_length
  good = 1 <= round(c.prompt_share * length) <= length
  todo = "give 0 to 1, at least one token of max_length"
  yield "seqkd.prompt_share", c.prompt_share, good, todo
  for name in ("temperature", "seed", "rows"):
    yield at_least(f"seqkd.{name}", c[name], 0)
  for name in ("batch_size", "rows_per_part"):
    yield at_least(f"seqkd.{name}", c[name], 1)
  yield "seqkd.top_p", c.top_p, 0 < c.top_p <= 1, "give a number in (0, 1]"
  yield among("seqkd.dtype", c.dtype, _DTYPES)
  uses = uses_generated(config)
  student, todo = config.student, "say one_to_one: seqkd's rows do not join"
  good = not (uses and student.tokenizer) or student.conversion == "one_to_one"
  yield "student.conversion", student.conversion, good, todo


def _kd_rules(config, among):
  """What it takes to learn from the teacher's distributions; as `_rules`."""
  kd = config.kd
  yield "kd.weight", kd.weight, 0 <= kd.weight <= 1, "give 0 to 1"
  good = 0.01 <= kd.temperature <= 100
  yield "kd.temperature", kd.temperature, good, "give 0.01 to 100"
  yield among("kd.dtype", kd.dtype, ("", *_DTYPES))


def _minillm_rules(config):
  """What method minillm can do with, as `_rules`."""
  m, used = config.minillm, "minillm" in methods(config)
  prompt = int(m.prompt_share * config.corpus.max_length)
  good = 2 <= prompt < config.corpus.max_length
  todo = "let there be 2 or more of max_length before it, and some after it"
  yield "minillm.prompt_share", m.prompt_share, good or not used, todo
  value = m.teacher_mix
  yield "minillm.teacher_mix", value, 0 <= value < 1, "give 0 to less than 1"
  value = m.lm_weight
  yield "minillm.lm_weight", value, 0 <= value < float("inf"), "give 0 or more"


def _logits_rules(config, among, at_least):
  """Those of methods that read stage logits, as `_rules`."""
  c, chosen = config.sparse_kd, config.token_selection
  yield at_least("logits.rows_per_part", config.logits.rows_per_part, 1)
  yield among("sparse_kd.kind", c.kind, ("sampling", "top_k"))
  yield at_least("sparse_kd.ids", c.ids, 1)
  yield at_least("sparse_kd.seed", c.seed, 0)
  yield "sparse_kd.weight", c.weight, 0 < c.weight <= 1, "give 0 to 1, not 0"
  good = not c.normalise or c.kind == "top_k"
  todo = "say False: counts of samples sum up to 1"
  yield "sparse_kd.normalise", c.normalise, good, todo
  yield among("token_selection.model", chosen.model, ("reference", "teacher"))
  good = 0 < chosen.ratio <= 1
  yield "token_selection.ratio", chosen.ratio, good, "give 0 to 1, not 0"
