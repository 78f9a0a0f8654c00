"""Working through the units of one or several tables, beside other workers.

A worker is a process, or all processes of a pod together. Workers share
nothing but the workdir: each takes a unit that nobody has, scores it under
the models whose part is missing, and publishes the parts.
"""

import contextlib
import dataclasses
import functools
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from miniplm_jax.config import RunConfig, ScoreConfig
from miniplm_jax.core import claims, distributed, errors, files, signals
from miniplm_jax.core.log import Progress, log
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import huggingface
from miniplm_jax.scoring import table
from miniplm_jax.scoring import units as units_lib
from miniplm_jax.scoring.scorer import Effort, Scorer
from miniplm_jax.scoring.units import Unit
from miniplm_jax.training import flops as flops_lib

STAGE = "score"
_SUMMARIES = "workers"  # folder of what each worker did


@dataclasses.dataclass(frozen=True)
class TableSpec:
  """One table to be filled."""

  model: str  # its name
  directory: epath.Path  # where its parts lie
  claims: epath.Path  # where its workers claim units
  made_by: Mapping[str, str]  # fingerprints of what scores it, by name
  stage: str = STAGE  # for the log
  value: str = "nll_sum"  # what is kept of a row, one of `table.VALUES`


def made_by(
  score: ScoreConfig, corpus: Corpus, model, is_int8: bool
) -> dict[str, str]:
  """Returns what each part says it was scored with.

  Of the model, as it was loaded, both: other weights and the same weights
  otherwise put to use (a `rope_theta`, an epsilon) are another model.
  """
  how = [score.dtype, list(score.lengths), score.most_tokens, is_int8]
  return {
    "weights": huggingface.weights_fingerprint(model),
    "tokenizer": corpus.manifest.tokenizer,
    "code": units_lib.code(),
    "architecture": model.arch.fingerprint,
    "settings": files.digest(how),
  }


class Worker:
  """Fills tables until every unit of each has its part."""

  def __init__(
    self,
    scorer: Scorer,
    units: Sequence[Unit],
    tables: Sequence[TableSpec],
    run: RunConfig,
  ):
    """Does nothing yet; the scorer has all these tables' models.

    Units are taken in their order.
    """
    self._scorer, self._units = scorer, units
    self._tables, self._run = tables, run
    self._finished = [set() for _ in tables]  # names of parts, checked
    self._next_unit = 0
    self._waiting = False
    self._effort, self._compiling = Effort(), 0.0
    name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.json"
    self._summaries = [t.directory / _SUMMARIES / name for t in tables]

  def fill(self):
    """Scores what nobody else does; returns when all parts exist.

    Raises:
      UserError: a score is not finite, or a part is not of its table.
    """
    with contextlib.ExitStack() as stack:
      self._progress = None  # in other processes than the first
      distributed.agree(lambda: self._open(stack))
      # The first process decides, all score.
      while (task := distributed.agree(self._choose)) is not None:
        if task["tables"]:
          self._score(self._units[task["unit"]], task["tables"])

  def _say(self, what: str):
    log(self._tables[0].stage, what)

  def _open(self, stack):
    self._boards = [
      stack.enter_context(claims.Board(t.claims, self._run.lease_seconds))
      for t in self._tables
    ]
    self._look()
    done = sum(self._rows_finished(k) for k in range(len(self._tables)))
    done /= len(self._tables)  # a row is done when all models have scored it
    names = "+".join(t.model for t in self._tables)
    self._progress = stack.enter_context(
      Progress(
        f"{self._tables[0].stage} {names}",
        sum(len(u.rows) for u in self._units),
        "rows",
        done=done,
        every=self._run.log_every_seconds,
      )
    )

  def _look(self):
    """Notes the parts that exist, and refuses those of something else."""
    by_name = {unit.name: unit for unit in self._units}
    for k, t in enumerate(self._tables):
      before = self._rows_finished(k)
      names = table.check_names(t.directory, self._units)
      for name in names - self._finished[k]:
        part = table.read_part(t.directory / name, header_only=True)
        table.check_part(part, by_name[name], t.made_by, self._run.any_code)
        self._finished[k].add(name)
      if new := self._rows_finished(k) - before:
        self._advance(new)

  def _advance(self, rows: int, note: str = ""):
    before = self._compiling
    self._compiling = getattr(self._scorer, "compiling", 0.0)
    if self._progress:
      rows /= len(self._tables)
      self._progress.update(rows, note, apart=self._compiling - before)

  def _rows_finished(self, k: int) -> int:
    return sum(len(u.rows) for u in self._units if u.name in self._finished[k])

  def _choose(self) -> dict[str, Any] | None:
    """A unit and its tables, nothing to do for now, or None at the end."""
    for _ in range(2):  # what is left of this pass, then one more
      while self._next_unit < len(self._units):
        index, self._next_unit = self._next_unit, self._next_unit + 1
        if chosen := self._claim(self._units[index]):
          return {"unit": index, "tables": chosen}
      self._look()
      left = sum(len(self._units) - len(names) for names in self._finished)
      if not left:
        return None
      self._next_unit = 0
    if not self._waiting:
      self._say(f"waiting for {left} parts that other workers have taken")
      self._waiting = True
    time.sleep(min(self._run.lease_seconds / 10, 5))
    return {"unit": 0, "tables": []}

  def _claim(self, unit: Unit) -> list[int]:
    """The tables that lack this unit and that nobody else is filling."""
    chosen = []
    for k, t in enumerate(self._tables):
      if unit.name in self._finished[k] or not self._boards[k].claim(unit.name):
        continue
      if (t.directory / unit.name).exists():  # finished since we looked
        self._boards[k].release(unit.name)
      else:
        chosen.append(k)
    return chosen

  def _score(self, unit: Unit, chosen: Sequence[int]):
    note = self._note()
    if not note and (tokens := getattr(self._scorer, "batch_tokens", None)):
      self._say(
        f"compiling; batches of {tokens:,} tokens, padding included, in "
        f"{len(self._units):,} parts of up to {len(unit.rows):,} rows"
      )
    try:
      sums, n_tokens, effort = self._scorer(
        unit.rows,
        [self._tables[k].model for k in chosen],
        lambda rows: self._advance(rows * len(chosen), note),
      )
    except signals.Stopped:
      kept = min(map(self._rows_finished, range(len(self._tables))))
      self._say(
        f"kept {kept:,} rows; the part of {len(unit.rows):,} that was begun is "
        "scored again when it goes on"
      )
      raise
    self._effort.add(effort)
    for k in chosen:
      t = self._tables[k]
      # In all processes: all of them must fail if one does.
      part = table.encode(unit, sums[t.model], n_tokens, t.made_by, t.value)
      distributed.agree(functools.partial(self._publish, k, unit.name, part))

  def _publish(self, k: int, name: str, part: bytes):
    claims.publish(self._tables[k].directory / name, part)
    self._boards[k].release(name)
    self._finished[k].add(name)
    files.write_json(self._summaries[k], self._facts())

  def _facts(self) -> dict[str, Any]:
    """Returns what this worker has done so far, and its rates."""
    return _with_rates(
      {
        **dataclasses.asdict(self._effort),
        "devices": jax.device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "peak_flops": flops_lib.peak_flops(),
        "batch_tokens": getattr(self._scorer, "batch_tokens", None),
        "shapes": sorted(self._scorer.shapes),
      }
    )

  def _note(self) -> str:
    if not self._effort.tokens:
      return ""
    facts = self._facts()
    return f"{in_words(facts)}, {len(facts['shapes'])} shapes"


def summary(directory: epath.Path) -> dict[str, Any]:
  """Adds up what all workers of a table did; rates are means over workers.

  Workers that ran at one time add up. If a worker scored several models in
  one pass, its seconds and FLOPs are those of all of them.
  """
  total, last = Effort(), {}
  same = ("devices", "device_kind", "peak_flops", "batch_tokens")
  paths = sorted((directory / _SUMMARIES).glob("*.json"))
  for path in paths:
    with errors.parsing(path, "remove it: it only says how long a worker took"):
      facts = json.loads(path.read_bytes())
      names = (f.name for f in dataclasses.fields(Effort))
      total.add(Effort(**{name: facts[name] for name in names}))
      last = {name: facts.get(name) for name in same}
  if not last:
    return {}
  return _with_rates(
    {
      **dataclasses.asdict(total),
      **last,
      "worker_seconds": total.seconds,
      "workers": len(paths),
    }
  )


def _with_rates(facts: dict[str, Any]) -> dict[str, Any]:
  seconds = max(facts["seconds"], 1e-9)
  rate = facts["tokens"] / seconds
  rates = {
    "score/tokens_per_second": rate,
    "score/tokens_per_second/device": rate / facts["devices"],
    "score/padding_share": 1 - facts["tokens"] / max(facts["padded_tokens"], 1),
    "score/host_wait_share": facts["host_wait"] / seconds,
  }
  if facts["peak_flops"]:
    peak = facts["peak_flops"] * facts["devices"]
    rates["score/mfu"] = facts["flops"] / seconds / peak
  return facts | rates


def in_words(facts: Mapping[str, Any]) -> str:
  """The rates as one line."""
  if "score/tokens_per_second" not in facts:
    return "no tokens were scored here"
  mfu = ""
  if "score/mfu" in facts:
    mfu = f"MFU {facts['score/mfu']:.1%}, "
  elif facts.get("device_kind", "cpu") != "cpu":
    mfu = f"MFU not known of {facts['device_kind']}, "
  return (
    f"{facts['score/tokens_per_second']:,.0f} tokens/s "
    f"({facts['score/tokens_per_second/device']:,.0f} a device), {mfu}"
    f"padding {facts['score/padding_share']:.1%}, "
    f"host wait {facts['score/host_wait_share']:.1%}"
  )
