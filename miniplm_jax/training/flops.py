"""FLOPs in closed form: of models, of the objectives, of what comes before.

A matmul weight takes 2 FLOPs a token and attention what
`Architecture.mixing_flops` says; norms, activations, the softmax and the
optimizer are left out, as is customary (arXiv 2001.08361, section 2.1;
2204.02311, appendix B). The backward pass takes twice the forward pass, so
training 3 of it. What rematerialization computes again is how a run goes, not
what it asks for, and is not counted. F_s and F_t: the forward pass of student
and teacher over one token of a row.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

from miniplm_jax.core import fields
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.models.architecture import Architecture

# The key of a manifest's details: FLOPs by what they were spent on, in words.
OFFLINE = "offline_flops"
OfToken = Callable[[int], float]

# bf16 peak per device, dense, FLOP/s, from the vendors' data sheets. A key is
# what JAX calls a device, or the first words of it; the first that fits counts.
# GPUs without bf16 products (T4, V100) have no such peak, a part of one (MIG)
# has none that is told.
_PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "NVIDIA B200": 2250e12,
  "NVIDIA GH200": 989e12,
  "NVIDIA H200 NVL": 835e12,
  "NVIDIA H200": 989e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H100 NVL": 835e12,
  "NVIDIA H100": 989e12,
  "NVIDIA A100": 312e12,
  "NVIDIA L40S": 362e12,
  "NVIDIA L4": 121e12,
  "NVIDIA A10G": 70e12,
  "NVIDIA A10": 125e12,
}


def row(arch: Architecture, length: int, heads: int | None = None) -> float:
  """A forward pass over a row of `length` inputs, with logits of `heads`.

  That is the number of positions of which logits are made; None is all.
  """
  heads = length if heads is None else heads
  head = 2 * arch.vocab_size * arch.hidden_size
  return length * arch.body_flops(length) + heads * head


def rows(of_token: OfToken, lengths: Iterable[int]) -> float:
  """Forward passes over rows of these lengths, without their padding.

  `of_token` is the FLOPs of one token of a row of a length.
  """
  import numpy as np

  values, counts = np.unique(lengths, return_counts=True)
  by_row = [int(n) * of_token(int(n)) for n in values]
  return float(np.dot(by_row, counts))


def generation(arch: Architecture, prompt: int, new: int) -> float:
  """A row's generation with a cache: prefill, then a token at a time.

  Token i attends to the i before it, so together they attend to as much as in
  one pass over the whole row. Logits are made of the prompt's last position
  and of each new token but the last, which nothing follows; the prompt has at
  least one token.
  """
  return row(arch, prompt + new - 1, heads=new) if new else 0.0


def next_token(student: Architecture, length: int) -> float:
  """3·F_s: forward and backward pass over an input token (arXiv 2001.08361).

  Also of `seqkd` and `sparse_kd`, whose teacher spoke before the training.
  """
  return 3.0 * student.forward_flops(length)


def minillm(
  student: Architecture, teacher: Architecture, prompt: int, new: int
) -> float:
  """FLOPs of an input token when rows are sampled, judged and learned from.

  Of a row: student and teacher generate it together (arXiv 2306.08543,
  section 2.2) and what the teacher saw is kept, so that only its head is
  taken once more; the student trains on the sample, where both parts of the
  gradient have logits of their own, of the new tokens alone; and on a given
  row of the same length, `prompt + new` tokens, by the next-token loss.
  """
  length = prompt + new
  total = generation(student, prompt, new) + generation(teacher, prompt, new)
  total += row(teacher, 0, new)
  total += 3 * (row(student, length, new) + row(student, 0, new))
  return total / length + next_token(student, length)


@dataclasses.dataclass(frozen=True)
class TokenCost:
  """FLOPs of what a training step may do with an input token of a row."""

  student: Architecture
  teacher: Architecture | None  # None: it takes no part
  length: int  # inputs of the row

  @property
  def training(self) -> float:
    """3·F_s: the next-token loss and its gradient."""
    return next_token(self.student, self.length)

  @property
  def student_pass(self) -> float:
    """F_s."""
    return self.student.forward_flops(self.length)

  @property
  def teacher_pass(self) -> float:
    """F_t."""
    return self.teacher.forward_flops(self.length)

  def on_policy(self, prompt_share: float) -> float:
    """`minillm` with this share of the row as a prompt."""
    prompt = fields.of(prompt_share, self.length)
    return minillm(self.student, self.teacher, prompt, self.length - prompt)


def spent(manifests: Mapping[str, Manifest | None]) -> dict[str, float | None]:
  """What was spent offline, by part in words; None is not known."""
  parts_spent = {}
  for name, manifest in manifests.items():
    own = manifest.details.get(OFFLINE) if manifest else None
    parts_spent |= {name: None} if own is None else own
  return parts_spent


def in_words(parts: Mapping[str, float | None]) -> str:
  """`spent` for a line of the log."""
  if not parts:
    return "nothing before it"
  texts = [
    f"{name} {'not known' if n is None else f'{n:.3g}'}"
    for name, n in parts.items()
  ]
  if None in parts.values() or len(parts) == 1:
    return f"before it {', '.join(texts)}"
  return f"before it {sum(parts.values()):.3g} ({', '.join(texts)})"


def peak_flops(device_kind: str = "") -> float | None:
  """Peak FLOP/s of one device; None where it is not known (CPU).

  By default of this machine's devices.
  """
  import jax

  kind = device_kind or jax.devices()[0].device_kind
  for name, peak in _PEAK_FLOPS.items():
    if re.fullmatch(rf"{name}([ -].*)?", kind) and "MIG" not in kind:
      return peak
  return None
