"""What a part is told, and how a variant changes our package; no JAX here."""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator

from benchmarks.accelerator import sizes

_VALUES = {
  "logits": ("", "float32", "bfloat16"),
  "passes": (0, 1, 2),
  "remat": ("", "full", "dots", "none"),
}


@dataclasses.dataclass(frozen=True)
class Variant:
  """What differs from the package as it is; 0 and "" leave it so.

  Attributes:
    tile: tokens whose logits exist at a time.
    logits: the dtype in which they are kept.
    passes: over them, for their maximum and sum, 1 or 2.
    remat: what the backward pass keeps, a key of `decoder.REMAT`.
    rows: that a device takes at a time.
    unroll: layers per turn of the scan over the layers.

  Raises:
    ValueError: a value that there is not.
  """

  tile: int = 0
  logits: str = ""
  passes: int = 0
  remat: str = ""
  rows: int = 0
  unroll: int = 0

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if name in _VALUES and value not in _VALUES[name]:
        known = ", ".join(str(x) for x in _VALUES[name] if x)
        raise ValueError(f"{name}={value}: give one of {known}")
      if isinstance(value, int) and value < 0:
        raise ValueError(f"{name}={value}: give 0 or more")

  def __str__(self) -> str:
    """As it stands in a key, "" if nothing differs."""
    given = dataclasses.asdict(self).items()
    return ", ".join(f"{name}={value}" for name, value in given if value)

  def apply(self):
    """Overwrites the package's tables here, before anything is traced."""
    import jax

    from miniplm_jax.models import decoder, head

    platform = jax.devices()[0].platform
    tiling = {"tokens": self.tile, "logits": self.logits}
    tiling = {name: value for name, value in tiling.items() if value}
    if self.passes:
      tiling["is_read_once"] = self.passes == 1
    for table in (head.SCORING, head.TRAINING):
      table[platform] = dataclasses.replace(table[platform], **tiling)
    if self.unroll:
      decoder.UNROLL[platform] = self.unroll


def sweep(text: str, base: Variant) -> Iterator[Variant]:
  """The variants of "tile:2048,8192;remat:dots,none": each with each.

  Raises:
    ValueError: a name or a value that no variant has.
  """
  types = {f.name: f.type for f in dataclasses.fields(Variant)}
  axes = {}
  for part in filter(None, text.split(";")):
    name, _, values = part.partition(":")
    if name not in types or not values:
      raise ValueError(f"{part!r}: give one of {', '.join(types)}, and values")
    try:
      axes[name] = [types[name](value) for value in values.split(",")]
    except ValueError:
      raise ValueError(f"{part!r}: give whole numbers") from None
  for values in itertools.product(*axes.values()):
    yield dataclasses.replace(base, **dict(zip(axes, values)))


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a part is told.

  Attributes:
    part: its name.
    out: the folder of the results.
    scratch: a folder for models and rows that is removed at the end.
    size: a key of `sizes.SIZES`.
    variant: of our side.
    against: whether transformers is measured beside us.
    compiled: whether torch.compile is tried.
    turns: of either side.
    shapes: which; all if there are none.
    again: whether what failed is tried once more.
    crash: a contender that is to crash, for the tests.
    start: of the whole run, in seconds of `time.time()`.
    deadline: when this part is ended.
    end: of the whole run.
  """

  part: str
  out: str
  scratch: str
  size: str
  variant: Variant
  against: bool
  compiled: bool
  turns: int
  shapes: tuple[str, ...]
  again: bool
  crash: str
  start: float
  deadline: float
  end: float

  @classmethod
  def read(cls, text: str) -> "Settings":
    """From JSON."""
    found = json.loads(text)
    found["variant"] = Variant(**found["variant"])
    return cls(**found | {"shapes": tuple(found["shapes"])})

  def text(self) -> str:
    """As JSON."""
    return json.dumps(dataclasses.asdict(self))

  @property
  def plan(self) -> sizes.Size:
    """Shapes and amounts."""
    return sizes.SIZES[self.size]

  @property
  def left(self) -> float:
    """Seconds until this part is ended."""
    return self.deadline - time.time()

  def key(self, shape: str) -> str:
    """The name of a result of ours."""
    return f"{shape} | {self.variant}" if str(self.variant) else shape

  def wants(self, shape: str) -> bool:
    """Whether a shape was asked for."""
    return not self.shapes or shape in self.shapes

  def say(self, text: str):
    """A line of progress."""
    now = time.time()
    print(
      f"[{now - self.start:4.0f} s, {self.end - now:4.0f} s left] "
      f"{self.part}: {text}",
      flush=True,
    )
