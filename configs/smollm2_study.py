r"""The study of docs/results.md: SmolLM2-135M chooses for 1.4M parameters.

  python -m benchmarks.smollm2_study --corpus=CORPUS --teacher=SMOLLM2

runs it, with the seeds, and can be stopped and started again. Students read
rows re-packed with a tokenizer of 4,096 ids. A KD student must have the
teacher's 49,152, which most of its 7.1M parameters then are;
configs/smollm2_study.py:kd has those, over the same scores and selections.
:zscore ranks rows within their domain, which tells what a result comes from.
"""

from miniplm_jax import config as config_lib
from miniplm_jax import small_config

METHODS = {
  "": ("pretrain", "miniplm", "difficulty", "teacher_preference"),
  "kd": ("pretrain", "miniplm", "vanilla_kd"),
  "zscore": ("miniplm",),
}
# What the script plants in the corpus; it has none of the held-out loss.
DAMAGES = ("shuffled", "truncated", "duplicated")


def get_config(which=""):
  """See above."""
  if which not in METHODS:
    raise ValueError(f"smollm2_study.py:{which} is none of {[*METHODS]}")
  config = config_lib.default()
  config.workdir = "runs/smollm2_study"
  config.baselines = tuple(m for m in METHODS[which] if m != config.method)
  config.teacher.path = config.corpus.tokenizer = "HuggingFaceTB/SmolLM2-135M"
  config.corpus.max_length = 128
  config.corpus.reference_share, config.corpus.heldout_share = 0.15, 0.07
  small_config.shape(config.reference.model, 49_152, 64, 192, 2, 2)
  small_config.schedule(config.reference.train, 300, 3e-3)
  if which == "kd":
    small_config.shape(config.student.model, 49_152, 128, 384, 4, 4)
    small_config.schedule(config.train, 300, 2e-3)
  else:
    small_config.shape(config.student.model, 4096, 128, 384, 4, 4)
    small_config.schedule(config.train, 800, 2e-3)
    config.student.tokenizer = "runs/smollm2_study/small/corpus/tokenizer"
    config.student.eos_token = "<|endoftext|>"
  if which == "zscore":
    config.select.definition = "zscore_by_domain"
  config.score.dtype = "float32"
  config.evaluation.dtype = config.generate.dtype = "float32"
  config.score.rows_per_part = 512
  config.score.batch_tokens, config.score.lengths = 8192, (64,)
  config.evaluate.ignore_domains = DAMAGES
  config.evaluate.max_rows = 0
  config.run.checkpoint_every = config.run.eval_every = config.train.steps // 16
  config.run.eval_rows = 200
  config.run.log_every_seconds = 30.0
  return config
