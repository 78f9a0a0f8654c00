"""What methods beyond a choice of rows can be told, and what may be said.

Sections of the config, and rules of several fields for `config_rules.check`.
"""

from miniplm_jax.core import fields
from miniplm_jax.core.fields import Section, name, number, seed, switch, word
from miniplm_jax.methods import METHODS, methods, uses_generated, uses_proxy

_DTYPES = ("float32", "bfloat16")
# Objectives whose kernels have no z-loss.
_NO_Z = ("soft_labels", "sparse_kd")


def sections(small: Section, train: Section) -> Section:
  """The fields of each method.

  Args:
    small: shape of a model of the proxy's size.
    train: a train section.
  """
  return {
    # Method proxy, Appendix E: a small model learns the score on a sample
    # and predicts it for all of D. The paper does not give the recipe.
    "proxy": {
      "name": name("proxy"),  # scores/<name>
      # Share of D to learn from; it is tested on all other rows that were
      # scored. Keep it small: both models score these rows.
      "sample": number(0.01, "(0, 1)"),
      # Begin with the reference's weights; the shapes must be equal.
      "from_reference": switch(False),
      "model": small,
      "train": fields.changed(
        train, steps=2000, warmup_steps=200, shuffle=True
      ),
    },
    # Method seqkd: the teacher goes on after the first tokens of a row. The
    # paper has 768 of 1024, and does not say how it samples.
    "seqkd": {
      # of max_length; the teacher fills up the row
      "prompt_share": number(0.75, "(0, 1]"),
      "temperature": number(1.0, "[0, 1e6]"),  # 0 takes the likeliest token
      # only the likeliest with this probability together
      "top_p": number(1.0, "(0, 1]"),
      "seed": seed(10),
      # at most so many; 0 is as many as training takes
      "rows": number(0, "[0, 2^63)"),
      "batch_size": number(128, "[1, inf)"),  # rows at a time, over all devices
      "rows_per_part": number(8192, "[1, inf)"),  # unit of resuming
      "dtype": word("bfloat16", _DTYPES),  # of weights, computation and cache
    },
    # Of vanilla_kd and miniplm_kd: (1 - weight) of the next-token loss and
    # weight of the teacher's soft labels, over the whole vocabulary.
    "kd": {
      "weight": number(0.5, "[0, 1]"),
      # Of the teacher's and the student's soft labels; their loss is
      # multiplied by its square (Hinton et al. 2015). The paper's is 1.
      "temperature": number(1.0, "[0.01, 100]"),
      # the teacher's weights and computation; "" is train's
      "dtype": word("", ("", *_DTYPES)),
    },
    # Method minillm, arXiv 2306.08543: the student continues rows.
    "minillm": {
      # Of max_length: the prompt. The paper has 768 + 256 tokens.
      "prompt_share": number(0.75, "(0, 1)"),
      # the teacher's share in what is drawn from
      "teacher_mix": number(0.2, "[0, 1)"),
      # of the next-token loss of the rows
      "lm_weight": number(1.0, "[0, 1e6]"),
    },
    # Stage logits, for the two methods that follow. It computes as `score`
    # does: score.dtype, lengths, batch_tokens.
    "logits": {
      # Unit of resuming, held in memory: 4 to 6 bytes a token and id.
      "rows_per_part": number(1024, "[1, inf)"),
    },
    # Method sparse_kd: the teacher's words at each token, but few of them.
    "sparse_kd": {
      # sampling: drawn from p, unbiased (arXiv 2503.16870); top_k: the
      # likeliest, biased.
      "kind": word("sampling", ("sampling", "top_k")),
      "ids": number(50, "[1, inf)"),  # of a token: samples, or k
      "seed": seed(10),  # of the samples
      # of the teacher's words; the label has the rest
      "weight": number(0.5, "(0, 1]"),
      "normalise": switch(False),  # of top_k: let the probabilities sum up to 1
    },
    # Method token_selection, arXiv 2404.07965: the tokens of a batch whose
    # loss is most above a frozen model's.
    "token_selection": {
      # the frozen model, or teacher
      "model": word("reference", ("reference", "teacher")),
      "ratio": number(0.6, "[0.01, 1]"),  # of the tokens
    },
  }


def rules(config):
  """What several fields must be together, as `config_rules.check` reads it."""
  yield from _proxy_rules(config)
  yield from _generated_rules(config)
  yield from _model_rules(config)
  c = config.sparse_kd
  good = not c.normalise or c.kind == "top_k"
  todo = "say False: counts of samples sum up to 1"
  yield "sparse_kd.normalise", c.normalise, good, todo


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
  """Which rows are scored, and what the proxy may be."""
  share, proxy = config.score.share, config.proxy
  good = share == 1 or set(methods(config)) == {"proxy"}
  todo = "use method proxy alone, or 1: other methods need every row's score"
  yield "score.share", share, good, todo
  given = [r for r in ("teacher", "reference") if config[r].scores]
  todo = f"give 1: {' and '.join(given)}.scores must be of every row"
  yield "score.share", share, share == 1 or not given, todo
  good = proxy.sample < share or not uses_proxy(config)
  todo = "give less than score.share: the rest tests the proxy"
  yield "proxy.sample", proxy.sample, good, todo
  tied, todo = proxy.model.tie_word_embeddings, "say True: it has no such head"
  yield "proxy.model.tie_word_embeddings", tied, tied, todo
  good = not (proxy.from_reference and config.reference.scores)
  todo = "say False: there are scores of the reference, not its weights"
  yield "proxy.from_reference", proxy.from_reference, good, todo
  value = proxy.train.z_loss
  yield "proxy.train.z_loss", value, not value, "give 0: it has no logits"
  ranks, todo = config.select.definition, "say --config.method=proxy"
  yield "select.definition", ranks, ranks != "proxy", todo


def _generated_rules(config):
  """Where the teacher or the student goes on after a prompt."""
  length, student = config.corpus.max_length, config.student
  uses = uses_generated(config)
  value = config.seqkd.prompt_share
  good = round(value * length) >= 1 or not uses
  todo = "let it be at least one token of max_length"
  yield "seqkd.prompt_share", value, good, todo
  good = not (uses and student.tokenizer) or student.conversion == "one_to_one"
  todo = "say one_to_one: seqkd's rows do not join"
  yield "student.conversion", student.conversion, good, todo
  value, uses = config.minillm.prompt_share, "minillm" in methods(config)
  good = 2 <= fields.of(value, length) < length or not uses
  todo = "let there be 2 or more of max_length before it, and some after it"
  yield "minillm.prompt_share", value, good, todo
