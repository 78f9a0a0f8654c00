"""How whole documents are scored."""

import dataclasses

from miniplm_jax.core import fields as f
from miniplm_jax.core.fields import Section


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentsConfig(Section):
  """--stages=score_documents: whole documents of corpus.source.

  Each model reads them by its own tokenizer, as score.dtype and
  score.batch_tokens say.
  """

  # Which of teacher, reference and score.more; () is all language models.
  models: tuple[str, ...] = f.several(f.name("model"))
  # inputs of a window of a longer document; 0 is what the model says
  max_length: int = f.number(0, "[0, 2^24]")
  # The share of a window that is context alone: the window before scores it.
  # 0 are the rolling windows of lm_eval; 0.5 takes twice the time.
  overlap: float = f.number(0.5, "[0, 1)")
  # unit of work and of resuming, in UTF-8 bytes of text
  part_bytes: int = f.number(1 << 24, "[1, 2^63)")
