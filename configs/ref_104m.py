r"""Ref-Pretrain-Qwen-104M: the reference model alone, on D_ref.

  python -m miniplm_jax.main --config=configs/ref_104m.py \
    --config.workdir=runs/pile --config.corpus.source='data/pile/*.jsonl.zst'

Paper:   MiniPLM (arXiv 2410.17215), Section 3.
Corpus:  5B tokens of the Pile, held back from D by a hash of each row.
Tokens:  9,537 steps × 512 × 1024 = 5.0B.
Slice:   not chosen yet. Time: not yet run.

The other configs of the paper train it as their own stage; in the same
workdir they find this one and skip it.
"""

from miniplm_jax import config as config_lib
from miniplm_jax.models.architecture import PRESETS


def get_config():
  """The paper's constants are the defaults; this is what differs."""
  config = config_lib.default()
  config.workdir = "runs/pile"
  config.stages = ("tokenize", "reference")
  config.corpus.source = "data/pile/*.jsonl.zst"
  config.corpus.domain_field = "meta.pile_set_name"
  config.reference.model.update(PRESETS["qwen-104m"])
  config.reference.train.steps = 9_537  # 5B tokens
  return config
