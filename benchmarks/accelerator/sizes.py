"""Which shapes are measured, how many rows of them, and how long; no JAX.

Rows are those of one device; with several, each has as many.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from miniplm_jax.models.architecture import SHAPES, Transformer


class Scoring(NamedTuple):
  """Rows of a turn, and of a batch of ours and of theirs."""

  rows: int
  ours: int
  theirs: int


class Training(NamedTuple):
  """Rows of a step, of those at a time ours and theirs, and steps of a turn."""

  rows: int
  ours: int
  theirs: int
  steps: int


class Limit(NamedTuple):
  """Seconds of a part.

  Attributes:
    most: after which it is ended.
    least: with less it is not begun.
    kept: that the parts before it leave to it.
  """

  most: float
  least: float = 8
  kept: float = 0


@dataclasses.dataclass(frozen=True)
class Size:
  """A size of the whole measurement.

  Attributes:
    shapes: by name.
    length: inputs of a row.
    scoring: of shapes, the most valuable first.
    training: the same, of the part of that name.
    more_training: the same, when there is time.
    exact: the model that is compared with float64, and its rows.
    pieces: whose pieces of a step are measured, and rows at a time.
    product: of the largest square product, and bytes of the copy.
    repeats: of a timing.
    resume: steps of the run that is killed, and between its checkpoints.
    corpus: a source for the runs of the whole program; "" is small texts.
    demo: further arguments of the demo.
    compiled: whether torch.compile is tried, unless --compile says so.
    limits: of each part.
  """

  shapes: Mapping[str, Transformer]
  length: int
  scoring: Mapping[str, Scoring]
  training: Mapping[str, Training]
  more_training: Mapping[str, Training]
  exact: tuple[Transformer, int, int]
  pieces: tuple[str, int]
  product: tuple[int, int]
  repeats: int
  resume: tuple[int, int]
  corpus: str
  demo: tuple[str, ...]
  limits: Mapping[str, Limit]
  compiled: bool = True


def _presets(*names: str) -> dict[str, Transformer]:
  return {name: SHAPES[name] for name in names}


def _exact(vocabulary: int, hidden: int, layers: int) -> Transformer:
  """Grouped queries, biases, tied; weights that give logits of size 1."""
  return Transformer(
    vocab_size=vocabulary,
    hidden_size=hidden,
    intermediate_size=2 * hidden + 128,
    num_hidden_layers=layers,
    num_attention_heads=hidden // 64,
    num_key_value_heads=max(hidden // 256, 1),
    initializer_range=0.05,
  )


# Expected of an H100, not measured yet: loading, compiling and warming up take
# 30 to 60 s of a contest, a turn two seconds of either side. What a part does
# not need goes to those after it.
_LIMITS = {
  "device": Limit(60),
  "correctness": Limit(90, 30),
  "scoring": Limit(200, 45),
  "training": Limit(150, 45),
  "more_training": Limit(260, 70),
  "pieces": Limit(90, 20, 45),
  "resume": Limit(100, 40),
  "demo": Limit(300, 20),
}

_FULL = Size(
  shapes=_presets("qwen1.5-1.8b", "qwen-500m", "qwen-200m", "qwen-1.2b"),
  length=1024,
  scoring={
    "qwen1.5-1.8b": Scoring(256, 64, 16),
    "qwen-500m": Scoring(768, 64, 16),
  },
  training={"qwen-500m": Training(32, 32, 8, 8)},
  more_training={
    "qwen-200m": Training(64, 64, 16, 8),
    "qwen-1.2b": Training(32, 8, 4, 4),
  },
  exact=(_exact(151_936, 512, 4), 2, 512),
  pieces=("qwen-500m", 32),
  product=(8192, 1 << 31),
  repeats=7,
  resume=(2000, 400),
  corpus="",
  demo=(),
  limits=_LIMITS,
)

# A T4 of Colab has 15 GiB, a laptop less.
_SMALL = dataclasses.replace(
  _FULL,
  shapes=_presets("qwen-104m", "qwen-45m"),
  scoring={"qwen-104m": Scoring(64, 8, 4)},
  training={"qwen-104m": Training(8, 4, 2, 2)},
  more_training={"qwen-45m": Training(8, 8, 4, 2)},
  exact=(_exact(32_768, 256, 2), 2, 256),
  pieces=("qwen-104m", 4),
  product=(4096, 1 << 28),
  resume=(600, 100),
)


def _tiny(hidden: int, **more) -> Transformer:
  fields = {
    "vocab_size": 1000,  # no multiple of 128, so that the head is padded
    "hidden_size": hidden,
    "intermediate_size": 2 * hidden,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
  }
  return Transformer(**fields | more)


_SHORT = ("teacher.train", "reference.train", "train")
_TINY = Size(
  shapes={
    "tiny-a": _tiny(64, num_key_value_heads=2),
    "tiny-b": _tiny(32, tie_word_embeddings=False),
  },
  length=64,
  scoring={"tiny-a": Scoring(16, 8, 4), "tiny-b": Scoring(16, 8, 4)},
  training={"tiny-a": Training(4, 4, 2, 2)},
  more_training={"tiny-b": Training(4, 2, 4, 2)},
  exact=(_exact(1000, 256, 2), 2, 64),
  pieces=("tiny-a", 2),
  product=(256, 1 << 20),
  repeats=3,
  resume=(60, 15),
  corpus="topics",
  demo=tuple(f"--config.{s}.steps=8" for s in _SHORT)
  + tuple(f"--config.{s}.warmup_steps=2" for s in _SHORT)
  + ("--config.run.checkpoint_every=8", "--config.run.eval_rows=8")
  + ("--config.baselines=()", "--config.compare.criteria=()")
  + ("--config.compare.oracle=", "--config.corpus.fields=()"),
  limits=dict.fromkeys(_LIMITS, Limit(300)),  # of a busy machine
  compiled=False,
)

SIZES = {"full": _FULL, "small": _SMALL, "tiny": _TINY}
