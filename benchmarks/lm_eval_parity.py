r"""Our lm_eval model beside lm_eval's own `hf` model: answers and speed.

  python -m benchmarks.lm_eval_parity --model=DIRECTORY --task_data=DIR \
    --tasks=arc_easy,piqa [--documents=50] [--runs=3]

Both answer the requests that lm_eval makes of the first --documents of each
task, in float32 on this machine, in turn; `hf` takes its softmax in float64,
as its float32 one is 2e-5 nats a token off. What is quoted is the largest
difference of a request's log-likelihood, whether all metrics are the same,
and the ratio of the seconds without compilation. Needs the extras `eval` and
`parity`, and accelerate. Exit status 1 if a log-likelihood is off by more than
--tolerance, or a metric differs.
"""

import copy
import statistics
import sys
import time

from absl import app, flags

_MODEL = flags.DEFINE_string("model", None, "A directory.", required=True)
_TASKS = flags.DEFINE_list("tasks", ["arc_easy"], "Names of lm_eval's tasks.")
_DATA = flags.DEFINE_string("task_data", "", "As evaluation.task_data.")
_DOCUMENTS = flags.DEFINE_integer("documents", 50, "Of each task.", 1)
_RUNS = flags.DEFINE_integer("runs", 3, "Paired runs.", 1)
_BATCH = flags.DEFINE_integer("hf_batch_size", 16, "Of the hf model.", 1)
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-3, "Nats, of one request.")


class _Recorder:
  """An lm_eval model that keeps the answers and seconds of another."""

  def __init__(self, lm):
    self._lm, self.answers, self.seconds = lm, [], 0.0

  def __getattr__(self, name):
    found = getattr(self._lm, name)
    if name not in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
      return found

    def timed(requests):
      start = time.perf_counter()
      answers = found(copy.copy(requests), disable_tqdm=True)
      self.seconds += time.perf_counter() - start
      self.answers += answers
      return answers

    return timed


def _run(lm, name):
  """Metrics, answers and seconds of one run of a task."""
  from miniplm_jax.config import EvaluationConfig
  from miniplm_jax.evaluation import tasks

  lm = _Recorder(lm)
  few, data = _DOCUMENTS.value, _DATA.value
  given = EvaluationConfig(task_data=data, offline=True, documents=few)
  found = tasks.run(lm, name, given)
  metrics = {
    key: value
    for key, value in found["results"][name].items()
    if isinstance(value, float)
  }
  return metrics, lm.answers, lm.seconds


def _compare(answers, wanted):
  """Largest difference of log-likelihoods, and share of all else equal."""
  off, same = 0.0, []
  for ours, theirs in zip(answers, wanted, strict=True):
    if isinstance(ours, str):
      same.append(ours == theirs)
    elif isinstance(ours, tuple):
      off = max(off, abs(ours[0] - theirs[0]))
      same.append(ours[1] == theirs[1])
    else:
      off = max(off, abs(ours - theirs))
  return off, sum(same) / len(same) if same else 1.0


def main(argv):
  """Prints a row a task, and the verdict."""
  del argv
  from lm_eval.models.huggingface import HFLM

  from miniplm_jax.evaluation.lm import DirectoryLM

  ours = DirectoryLM(_MODEL.value, log_every_seconds=1e9)
  theirs = HFLM(
    _MODEL.value,
    dtype="float32",
    device="cpu",
    batch_size=_BATCH.value,
    softmax_dtype="float64",
  )
  good = True
  print(
    "| task | documents | requests | largest difference, nats | is_greedy or "
    "text equal | metrics | ours, s | first run, s | hf, s | hf / ours |"
  )
  print("| --- " * 10 + "|")
  for name in _TASKS.value:
    first = _run(ours, name)[2]
    pairs = []
    for _ in range(_RUNS.value):
      metrics, answers, seconds = _run(ours, name)
      wanted_metrics, wanted, their_seconds = _run(theirs, name)
      pairs.append((seconds, their_seconds))
    off, same = _compare(answers, wanted)
    # Means of log-likelihoods are as exact as these; shares are exact.
    equal = all(
      abs(value - wanted_metrics[key]) <= 1e-3 * abs(value)
      for key, value in metrics.items()
    )
    exact = {k: v for k, v in metrics.items() if k.startswith(("acc", "exact"))}
    equal &= all(value == wanted_metrics[key] for key, value in exact.items())
    good &= off <= _TOLERANCE.value and equal
    told = ", ".join(
      f"{key.partition(',')[0]} {value:.4g} / {wanted_metrics[key]:.4g}"
      for key, value in metrics.items()
      if "stderr" not in key
    )
    ratios = [b / a for a, b in pairs]
    middle = [statistics.median(seconds) for seconds in zip(*pairs)]
    print(
      f"| {name} | {_DOCUMENTS.value} | {len(answers)} | {off:.1e} | "
      f"{same:.1%} | {told} | {middle[0]:.2f} | {first:.1f} | "
      f"{middle[1]:.2f} | {statistics.median(ratios):.2f} "
      f"({min(ratios):.2f} to {max(ratios):.2f}) |",
      flush=True,
    )
  print("equal" if good else "not equal")
  sys.exit(0 if good else 1)


if __name__ == "__main__":
  app.run(main)
