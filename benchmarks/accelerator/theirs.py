"""The other side: transformers with SDPA, and torch.compile where it wins."""

import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.accelerator import contest, models, ours
from benchmarks.accelerator.contest import Entrant
from benchmarks.accelerator.results import reason

# Seconds: to warm up in after compiling, and those without which a
# compilation is not begun.
_SPARE, _LEAST, _LEAST_WHOLE = 12, 10, 45


def device_of(platform: str):
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


def load(model: str, device, dtype: str):
  """A model of transformers on the device."""
  import torch
  import transformers

  return transformers.AutoModelForCausalLM.from_pretrained(
    model, dtype=getattr(torch, dtype), attn_implementation="sdpa"
  ).to(device)


def adamw(decoder, train, fused: bool = True):
  """AdamW as the train section has it."""
  import torch

  return torch.optim.AdamW(
    decoder.parameters(),
    lr=train.learning_rate,
    betas=(train.beta1, train.beta2),
    eps=train.epsilon,
    weight_decay=train.weight_decay,
    fused=fused,
  )


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
  left = 3

  def ring(*unused):
    nonlocal left
    left -= 1
    if not left:
      signal.setitimer(signal.ITIMER_REAL, 0)
    raise TimeoutError(f"not compiled in {seconds:.0f} s")

  signal.signal(signal.SIGALRM, ring)
  # More than once: a compiler may catch the first and go on.
  signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1), 5)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


class _Ways:
  """One function of tokens and a loss, run in several ways.

  eager; with each layer compiled, and the loss: one compilation for all
  layers; and compiled as a whole.
  """

  def __init__(self, decoder, function: Callable[..., Any]):
    self._layers, self._function = decoder.model.layers, function
    self._now = ""  # the way in which the layers are

  def eager(self):
    """As it is."""
    import torch

    torch.compiler.reset()
    for layer in self._layers:
      layer._compiled_call_impl = None
    self._now = "eager"
    return functools.partial(self._function, loss=_losses)

  def layers(self):
    """Layers and loss compiled."""
    import torch

    self.eager()
    for layer in self._layers:
      layer.compile(dynamic=False)
    loss = torch.compile(_losses, dynamic=False)
    self._now = "layers"
    return functools.partial(self._function, loss=loss)

  def whole(self):
    """All of it compiled."""
    import torch

    made = torch.compile(self.eager(), dynamic=False)
    self._now = "whole"
    return made

  def fastest(
    self, measure: Callable[[Callable[..., Any]], float], compile_by: float
  ) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The fastest way, warm, and what was found on the way.

    Args:
      measure: uses it once; returns the seconds.
      compile_by: when compiling is to be done, `time.time()`; 0 is not tried.
    """
    made, found = {"eager": self.eager()}, {}
    measure(made["eager"])
    took, notes = {"eager": measure(made["eager"])}, []
    if not compile_by:
      notes.append("torch.compile was not tried")
    for name in ("layers", "whole") if compile_by else ():
      # The time for the layers once more, should the whole not win.
      seconds = compile_by - time.time() - found.get("compiling_layers", 0)
      if seconds < (_LEAST if name == "layers" else _LEAST_WHOLE):
        notes.append(f"{name}: no time to compile")
        continue
      try:
        with _alarm(seconds):
          made[name] = getattr(self, name)()
          found[f"compiling_{name}"] = measure(made[name])
          took[name] = min(measure(made[name]), measure(made[name]))
      except Exception as e:
        notes.append(f"{name}: {reason(e)[:300]}")
    best = min(took, key=took.get)
    if best != self._now:  # another way has undone it
      try:
        with _alarm(max(compile_by - time.time(), _LEAST)):
          made[best] = getattr(self, best)()
          measure(made[best])
      except Exception as e:
        notes.append(f"{best}, once more: {reason(e)[:300]}")
        best, made["eager"] = "eager", self.eager()
    found |= {"way": best, "ways": took}
    return made[best], found | ({"note": "; ".join(notes)} if notes else {})


def _losses(logits, targets):
  """Of each token, in float32."""
  from torch.nn import functional

  return functional.cross_entropy(
    logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
  )


def _mask(decoder) -> dict[str, Any]:
  """Arguments that keep SDPA to plain causal attention, its fastest kernel.

  Under torch.compile transformers makes a mask of its own.
  """
  import torch

  given = {"attention_mask": {"full_attention": None}}
  ids = torch.arange(1, 9, device=decoder.device)[None]
  with torch.inference_mode():
    plain = decoder(ids).logits
    try:
      same = torch.equal(decoder(ids, **given).logits, plain)
    except Exception:
      same = False  # of a version that wants none, or other layers
  return given if same else {}


def _compile_by(ready_by: float, compiled: bool) -> float:
  return ready_by - _SPARE if compiled else 0.0


def scorer(model, platform, rows, at_a_time, ready_by, compiled):
  """Scores all of `rows`, int32 [R, T + 1], in a turn."""
  import torch

  device = device_of(platform)
  decoder = load(model, device, "bfloat16").eval()
  mask = _mask(decoder)

  def nll_of(ids, loss):
    logits = decoder(ids[:, :-1], use_cache=False, **mask).logits
    return loss(logits, ids[:, 1:]).view(len(ids), -1).mean(1)

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
      function, found = _Ways(decoder, nll_of).fastest(measure, by)
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

  device, train = device_of(platform), ours.section(rows[0])
  decoder = load(model, device, "float32").train()

  mask = _mask(decoder)

  def loss_of(tokens, loss):
    with torch.autocast(
      device.type, torch.bfloat16, enabled=dtype == "bfloat16"
    ):
      logits = decoder(tokens[:, :-1], use_cache=False, **mask).logits
    return loss(logits, tokens[:, 1:]).mean()

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
      still = adamw(decoder, train)
      still.param_groups[0]["lr"] = 0.0  # so that trying leaves the weights
      some = next(models.batches(vocabulary, rows[0], length))

      def measure(function):
        decoder.zero_grad(set_to_none=True)  # of one that failed
        start = time.perf_counter()
        step(function, still, some, size)
        _wait(device)
        return time.perf_counter() - start

      by = _compile_by(ready_by, compiled)
      return _Ways(decoder, loss_of).fastest(measure, by)

    fitted, (function, found) = contest.fitting(rows[1], attempt)
    decoder.zero_grad(set_to_none=True)
    optimizer = adamw(decoder, train)

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
