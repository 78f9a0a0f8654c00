r"""MiniPLM-Mamba-130M: 140,458,752 parameters, of another family than Qwen's.

  python -m miniplm_jax.main --config=configs/mamba_130m.py \
    --config.workdir=runs/pile --config.corpus.source='data/pile/*.jsonl.zst'

Paper:   MiniPLM (arXiv 2410.17215), Section 3.3; average of nine zero-shot
         tasks 42.6 (41.6 without distillation).
Corpus:  105B tokens of the Pile: 5B D_ref, 100B scored, 50B kept; their text
         once more in Falcon's 65,024 ids.
Tokens:  100,000 steps × 512 × 1024 = 52.4B.
Slice:   not chosen yet. Time: not yet run.

Its optimizer is not Qwen's: a higher peak, a longer warm-up, more decay.
"""

from miniplm_jax import config as config_lib
from miniplm_jax.models.architecture import PRESETS


def get_config():
  """The paper's constants are the defaults; this is what differs."""
  config = config_lib.default()
  config.workdir = "runs/pile"
  config.corpus.source = "data/pile/*.jsonl.zst"
  config.corpus.domain_field = "meta.pile_set_name"
  config.reference.model.update(PRESETS["qwen-104m"])
  config.reference.train.steps = 9_537  # 5B tokens
  student = config.student
  student.name = "mamba-130m-{method}"
  student.model = config_lib.mamba()
  student.model.update(PRESETS["mamba-130m"])
  student.tokenizer, student.eos_token = "tiiuae/falcon-7b", "<|endoftext|>"
  train = config.train
  train.learning_rate, train.final_learning_rate_ratio = 2e-3, 0.005
  train.warmup_steps, train.weight_decay, train.beta2 = 10_000, 0.1, 0.95
  return config
