r"""Your own corpus, a real teacher, a laptop; docs/laptop.md goes through it.

  miniplm run --config=laptop --config.corpus.source='data/*.jsonl'
  miniplm run --config=laptop:TEACHER ...  # a Hugging Face directory or hub id

For thousands of documents, some 300,000 to 3M tokens. The teacher is
SmolLM2-135M unless another is named; students have its tokenizer and its
vocabulary. Of 49,152 ids they have 7M parameters, nearly all of them the
embedding.
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
  # The default is known without asking the hub; another says it itself.
  ids = (
    49_152 if teacher == TEACHER else hub.shape_of(teacher, "main").vocab_size
  )

  # Short rows make many of few documents, and a teacher's step on them short.
  config.corpus.max_length = 128
  # The paper's 5 % and 0.1 % are of 105B tokens. Here a fifth is what a small
  # reference learns from, and a tenth shows differences of some 0.05 nats.
  config.corpus.reference_share, config.corpus.heldout_share = 0.2, 0.1

  # Four layers of 128, both: as in docs/results.md, where it was measured.
  small_config.shape(config.reference.model, ids, 128, 384, 4, 4)
  small_config.shape(config.student.model, ids, 128, 384, 4, 4)
  # Rows a step: 8. Of 1M tokens half of D is 2,700 rows, and 400 steps pass
  # over it once; the reference passes thrice over its fifth in 600.
  small_config.schedule(config.reference.train, 300, 2e-3)
  small_config.schedule(config.train, 300, 2e-3)
  # Waste is rarely as much as half: keep 0.7 or more of what is clean already.
  config.select.ratio = 0.5

  # Half the time of bfloat16 on a CPU, which has no units for that.
  config.score.dtype = "float32"
  config.evaluation.dtype = config.generate.dtype = "float32"
  # A stop loses a part at most: 256 rows are some 30 seconds of SmolLM2-135M.
  config.score.rows_per_part = 256
  # 32 rows at a time: a line every some seconds, less than 1 GB.
  config.score.batch_tokens, config.score.lengths = 4096, (64,)

  # The verdict: kept rows beside random ones, three seeds of each. One more
  # student of each for the tables; `baselines` has the second.
  config.compare.criteria = ("miniplm=mean_diff",)
  config.baselines = ("pretrain",)

  # Nothing is formed twice where memory is no matter.
  config.run.remat = "none"
  # A stop loses nothing of a student, a power cut 50 steps; eight points of a
  # learning curve, of 100 of the held-out rows.
  config.run.checkpoint_every = config.run.eval_every = 50
  config.run.eval_rows = 100
  config.run.log_every_seconds = 10.0
  return config
