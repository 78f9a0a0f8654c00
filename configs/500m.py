r"""MiniPLM-Qwen-500M: 463,987,712 parameters, pre-trained on the refined Pile.

  python -m miniplm_jax.main --config=configs/500m.py \
    --config.workdir=runs/pile --config.corpus.source='data/pile/*.jsonl.zst'

Paper:   MiniPLM (arXiv 2410.17215), Section 3 and Appendix; average of nine
         zero-shot tasks 44.8 (43.2 without distillation).
Corpus:  105B tokens of the Pile: 5B D_ref, 100B scored, 50B kept.
Tokens:  100,000 steps × 512 × 1024 = 52.4B.
Slice:   not chosen yet. Time: not yet run.
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
  config.student.name = "500m-{method}"
  config.student.model.update(PRESETS["qwen-500m"])
  config.train.learning_rate = 3e-4
  # By the predictions for v5e:4x4 in docs/tpu_training.md.
  config.run.remat = "dots"
  config.run.per_device_batch_size = 8
  return config
