"""The other side: transformers with SDPA, and torch.compile where it wins."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.accelerator import contest, models, ours
from benchmarks.accelerator.contest import Entrant
from benchmarks.accelerator.results import reason

_SPARE = 20  # seconds to warm up without torch.compile when that took too long


def _device(platform: str):
  """The device that JAX calls so.

  Raises:
    RuntimeError: torch does not see it.
  """
  import torch

  if platform == "gpu" and torch.cuda.is_available():
    return torch.device("cuda")
  if platform == "cpu":
    return torch.device("cpu")
  raise RuntimeError(f"torch {torch.__version__} sees no {platform} here")


def _load(model: str, device, dtype: str):
  import torch
  import transformers

  return transformers.AutoModelForCausalLM.from_pretrained(
    model, dtype=getattr(torch, dtype), attn_implementation="sdpa"
  ).to(device)


def _wait(device):
  import torch

  if device.type == "cuda":
    torch.cuda.synchronize()


def _memory(device) -> dict[str, Any]:
  """The most that was in use at a time since the way was chosen."""
  import torch

  if device.type == "cuda":
    gib = torch.cuda.max_memory_allocated() / 2**30
    return {"gib": gib, "of": "device"}
  return {"gib": contest.process_gib("VmHWM"), "of": "process"}


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
  """Raises TimeoutError in the body when the time is up."""

  def ring(*unused):
    raise TimeoutError(f"not compiled in {seconds:.0f} s")

  before = signal.signal(signal.SIGALRM, ring)
  # More than once: a compiler may catch the first and go on.
  signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1), 5)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _fastest(
  eager: Callable[..., Any],
  measure: Callable[[Callable[..., Any]], float],
  compile_by: float,
) -> tuple[Callable[..., Any], dict[str, Any]]:
  """The faster of a function and of the compiled one, and what was found.

  Args:
    eager: the function.
    measure: uses it once; returns the seconds.
    compile_by: when compiling is to be done, `time.time()`; 0 is not tried.
  """
  import torch

  measure(eager)
  found = {"way": "eager", "eager_seconds": measure(eager)}
  if not compile_by:
    return eager, found | {"note": "torch.compile was not tried"}
  try:
    with _alarm(compile_by - time.time()):
      compiled = torch.compile(eager)
      found["compiling_seconds"] = measure(compiled)
      found["compiled_seconds"] = min(measure(compiled), measure(compiled))
  except Exception as e:
    torch._dynamo.reset()
    return eager, found | {"note": f"torch.compile: {reason(e)[:300]}"}
  if found["compiled_seconds"] < found["eager_seconds"]:
    return compiled, found | {"way": "compiled"}
  return eager, found | {"note": "torch.compile is slower"}


def _compile_by(ready_by: float, compiled: bool) -> float:
  return ready_by - _SPARE if compiled else 0.0


def scorer(model, platform, rows, at_a_time, ready_by, compiled):
  """Scores all of `rows`, int32 [R, T + 1], in a turn."""
  import torch
  from torch.nn import functional

  device = _device(platform)
  decoder = _load(model, device, "bfloat16").eval()

  def nll_of(ids):
    logits = decoder(ids[:, :-1], use_cache=False).logits
    nll = functional.cross_entropy(
      logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    return nll.view(len(ids), -1).mean(1)

  def prepare():
    def attempt(size):
      parts = torch.from_numpy(rows).long().split(size)

      @torch.inference_mode()
      def run(function, parts=parts):
        found = [function(part.to(device)) for part in parts]
        return torch.cat(found).cpu().numpy()

      def measure(function):
        start = time.perf_counter()
        run(function, parts[:1])
        _wait(device)
        return time.perf_counter() - start

      by = _compile_by(ready_by, compiled)
      function, found = _fastest(nll_of, measure, by)
      if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
      nll = run(function)
      run(function)
      return run, function, found | {"nll": nll}

    fitted, (run, function, found) = contest.fitting(at_a_time, attempt)

    def turn():
      run(function)

    first = found | {"rows": fitted}
    return Entrant(first, turn, lambda: _memory(device))

  return prepare


def trainer(
  model, platform, vocabulary, rows, length, steps, dtype, ready_by, compiled
):
  """Steps of AdamW; `rows`: of a step, and of those at a time.

  Float32 weights; in bfloat16 under autocast.
  """
  import torch
  from torch.nn import functional

  device, train = _device(platform), ours.section(rows[0])
  decoder = _load(model, device, "float32").train()

  def adamw(rate):
    return torch.optim.AdamW(
      decoder.parameters(),
      lr=rate,
      betas=(train.beta1, train.beta2),
      eps=train.epsilon,
      weight_decay=train.weight_decay,
      fused=True,
    )

  def loss_of(tokens):
    with torch.autocast(
      device.type, torch.bfloat16, enabled=dtype == "bfloat16"
    ):
      logits = decoder(tokens[:, :-1], use_cache=False).logits
    return functional.cross_entropy(
      logits.flatten(0, 1).float(), tokens[:, 1:].flatten()
    )

  def step(function, optimizer, tokens, size):
    total = 0.0
    for part in torch.from_numpy(tokens).long().split(size):
      loss = function(part.to(device)) * (len(part) / len(tokens))
      loss.backward()
      total += loss.detach()
    torch.nn.utils.clip_grad_norm_(
      decoder.parameters(), train.clip_norm, foreach=True
    )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total

  def prepare():
    stream = models.batches(vocabulary, rows[0], length)

    def attempt(size):
      still = adamw(0.0)  # so that trying leaves the weights as they are
      some = next(models.batches(vocabulary, rows[0], length))

      def measure(function):
        decoder.zero_grad(set_to_none=True)  # of one that failed
        start = time.perf_counter()
        step(function, still, some, size)
        _wait(device)
        return time.perf_counter() - start

      return _fastest(loss_of, measure, _compile_by(ready_by, compiled))

    fitted, (function, found) = contest.fitting(rows[1], attempt)
    decoder.zero_grad(set_to_none=True)
    optimizer = adamw(train.learning_rate)

    def run(steps):
      losses = [
        step(function, optimizer, next(stream), fitted) for _ in range(steps)
      ]
      return torch.stack(losses).tolist()

    if device.type == "cuda":
      torch.cuda.empty_cache()
      torch.cuda.reset_peak_memory_stats()
    first = found | {"losses": run(2), "rows": fitted}
    return Entrant(first, lambda: run(steps), lambda: _memory(device))

  return prepare
