r"""Your own corpus, a real teacher, a laptop; docs/laptop.md goes through it.

  miniplm run --config=laptop --config.corpus.source='data/*.jsonl'
  miniplm run --config=laptop:TEACHER ...  # a Hugging Face directory or hub id

For some 0.3M to 3M tokens, hundreds to thousands of documents. The teacher is
SmolLM2-135M unless another is named. Students have its tokenizer: of their 7.1M
parameters 6.3M embed its 49,152 ids.
"""

from miniplm_jax import config as config_lib
from miniplm_jax import small_config
from miniplm_jax.models import hub

TEACHER = "HuggingFaceTB/SmolLM2-135M"


def get_config(teacher=TEACHER):
  """See above."""
  config = config_lib.default()
  config.workdir = "runs/laptop"
  config.teacher.path = config.corpus.tokenizer = teacher
  ids = 49_152  # of the default, without asking the hub
  if teacher != TEACHER:
    ids = hub.shape_of(teacher, "main").vocab_size

  # Short rows are many of few documents: 8,400 of 1M tokens.
  config.corpus.max_length = 128
  # The paper's 5 % and 0.1 % are of 105B tokens: of 8,400 rows 8 held out.
  config.corpus.reference_share, config.corpus.heldout_share = 0.2, 0.1

  # Both of four layers of 128, as in the study of docs/results.md.
  small_config.shape(config.reference.model, ids, 128, 384, 4, 4)
  small_config.shape(config.student.model, ids, 128, 384, 4, 4)
  # 8 rows a step: of 1M tokens students see 2,400 of 2,900 kept rows, and the
  # reference each of its 1,700 one or two times.
  small_config.schedule(config.reference.train, 300, 2e-3)
  small_config.schedule(config.train, 300, 2e-3)
  # The paper's half. Keep more of what is filtered already.
  config.select.ratio = 0.5

  # bfloat16 rounds to 8 bits, and a CPU gains no time by it.
  config.score.dtype = "float32"
  config.evaluation.dtype = config.generate.dtype = "float32"
  config.generate.max_new_tokens = 48  # with the prompt, 128 at most
  # A kill loses a part at most: half a minute to a few of SmolLM2-135M.
  config.score.rows_per_part = 256
  config.score.lengths = (64,)  # and 128: a sixth of what is read is padding

  # The verdict: three paired seeds of kept rows and of random ones, the first
  # of which `train` makes: they are exported, and in the tables by domain.
  config.compare.criteria = ("miniplm=mean_diff",)
  config.baselines = ("pretrain",)

  # A step takes 0.2 GB; there is room to keep what others form twice.
  config.run.remat = "none"
  # Six points make a learning curve; each takes as long as some four steps.
  config.run.eval_every, config.run.eval_rows = 50, 100
  config.run.log_every_seconds = 10.0
  return config
