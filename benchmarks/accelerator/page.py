"""The results as a Markdown page, with a line for each goal."""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from benchmarks.accelerator import device, results
from benchmarks.accelerator.races import OURS, THEIRS

_DOCS = pathlib.Path(__file__).parents[2] / "docs" / "accelerators"
_BEGIN, _END = "<!-- measured -->", "<!-- /measured -->"
_NOT_RUN = "not run"
_OTHER = "its results are of another device, code, size or flags"


def _table(header, rows) -> str:
  from miniplm_jax.report.page import Table

  return Table(header, rows).markdown()


def _number(x: float | None, form: str = ",.0f", scale: float = 1) -> str:
  return "" if x is None else format(x * scale, form)


def _share(x: float | None) -> str:
  return "not known" if x is None else f"{x:.1%}"


def _time(seconds: float) -> str:
  for scale, unit in ((1, "s"), (1e3, "ms")):
    if seconds * scale >= 0.5:
      return f"{seconds * scale:.3g} {unit}"
  return f"{seconds * 1e6:.3g} µs"


def _at(found: Any, *path: Any) -> Any:
  """What lies there; None if there is nothing."""
  for name in path:
    try:
      found = found[name]
    except (KeyError, IndexError, TypeError):
      return None
  return found


_LARGE, _MIDDLE = "qwen1.5-1.8b", "qwen-500m"
_MEMORY = ("memory", "gib")
# What is wanted of one H100, where the figure lies, and the bound: at least, or
# if it is negative at most. Of two places the quotient. Those of a race are
# judged of one device, and what is against transformers if both took turns.
_GOALS = (
  ("scoring 1.8B: MFU", [("scoring", _LARGE, OURS, "mfu")], 0.55),
  ("scoring 1.8B: × transformers", [("scoring", _LARGE, "ratio", 0)], 1.5),
  ("scoring 0.5B: MFU", [("scoring", _MIDDLE, OURS, "mfu")], 0.45),
  ("training 500M: MFU", [("training", _MIDDLE, OURS, "mfu")], 0.45),
  ("training 500M: × transformers", [("training", _MIDDLE, "ratio", 0)], 1.2),
  (
    "training 500M: of transformers' peak memory",
    [("training", _MIDDLE, side, *_MEMORY) for side in (OURS, THEIRS)],
    -0.5,
  ),
  (
    "NLL in bfloat16: from float64, mean of tokens",
    [("correctness", OURS, "bfloat16", "nll_mean")],
    -2e-2,
  ),
  (
    "NLL in float32: from float64, any token",
    [("correctness", OURS, "float32", "nll_most")],
    -1e-4,
  ),
)


def goals(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
  """Each goal with its bound, whether it is met, and the figure."""
  lines = []
  for text, places, bound in _GOALS:
    values = [
      _at(found["parts"], part, "results", *rest) for part, *rest in places
    ]
    goal = f"{text} {'≤' if bound < 0 else '≥'} {abs(bound):g}"
    if None in values:
      lines.append((goal, _NOT_RUN, ""))
      continue
    value = values[0] / values[1] if values[1:] else values[0]
    met = value <= -bound if bound < 0 else value >= bound
    state, figure = "met" if met else "missed", f"{value:.3g}"
    part, shape = places[0][:2]
    race = _at(found["parts"], part, "results", shape)
    if part != "correctness" and _at(found, "facts", "devices") != 1:
      state = "not judged: not one device"
    if "transformers" in text:
      sides = [race.get(side, {}) for side in (OURS, THEIRS)]
      figure += ", {} rows against {} rows, {}".format(
        *(side.get("rows") for side in sides), sides[1].get("way")
      )
      if any(side.get("alone") for side in sides):
        state = "not judged: measured alone"
    lines.append((goal, state, figure))
  return lines


def text(found: Mapping[str, Any]) -> str:
  """The page."""
  facts, parts, run = (found.get(k, {}) for k in ("facts", "parts", "run"))
  ceilings = device.ceilings(parts.get("device", {}).get("results", {}))
  sections = [_head(facts, run)]
  if facts.get("size") != "full" or facts.get("platform") == "cpu":
    sections.append(
      f"**Size `{facts.get('size')}` on {facts.get('platform')}: this shows "
      "that everything runs. The times mean nothing.**"
    )
  sections.append(
    "## Goals, for one H100\n\n" + _table(("goal", "", "figure"), goals(found))
  )
  for part, section in _SECTIONS.items():
    content = parts.get(part, {"results": {}, "failed": {}})
    if content["results"]:
      sections.append(section(part, content["results"], ceilings, facts))
  sections.append(_missing(parts, run, found.get("other", [])))
  return "\n\n".join(sections) + "\n"


def _head(facts, run) -> str:
  versions = ", ".join(f"{k} {v}" for k, v in facts.get("versions", {}).items())
  lines = [
    f"# {facts.get('devices')} × {facts.get('device_kind')}",
    f"{facts.get('date', '')[:10]}, size `{facts.get('size')}`, "
    f"`{run.get('command')}`, {run.get('seconds', 0):.0f} s. "
    f"miniplm_jax {facts.get('package')}, commit "
    f"{facts.get('commit') or 'not known'}, code {facts.get('source')}. "
    f"{versions}. {facts.get('cores')} cores"
    + (f"; {facts['nvidia_smi']}" if facts.get("nvidia_smi") else "")
    + (f"; XLA_FLAGS={facts['xla_flags']}" if facts.get("xla_flags") else "")
    + ".",
  ]
  return "\n\n".join(lines)


def _device(unused_part, found, ceilings, facts) -> str:
  flops, moved = ceilings
  dispatch = found.get(device.DISPATCH, {}).get("seconds")
  peak = facts.get("peak_flops")
  size = found.get(device.PRODUCT, {}).get("size", 0)
  rows = [
    (
      "bfloat16 product",
      f"{size:,}³",
      f"{_number(flops, '.4g', 1e-12)} TFLOP/s",
    ),
    ("copy, read and written", "", f"{_number(moved, '.4g', 1e-9)} GB/s"),
    ("a call that does nothing", "", _time(dispatch) if dispatch else ""),
    (
      "peak that MFU is a share of",
      "data sheet",
      f"{peak / 1e12:.0f} TFLOP/s" if peak else "not known",
    ),
  ]
  return "## Ceilings\n\n" + _table(("what", "", "measured"), rows)


def _correctness(unused_part, found, unused_ceilings, unused_facts) -> str:
  rows = [
    (
      dtype,
      side,
      *(f"{value[f'nll_{k}']:.1e}" for k in ("most", "mean", "rms")),
      *(f"{value[k]['all']:.1e}" for k in ("gradients", "change")),
      _worst(value["gradients"]),
    )
    for dtype in ("float32", "bfloat16")
    for side, by_dtype in found.items()
    for value in [by_dtype[dtype]]
  ]
  header = ("dtype", "", "NLL, most", "mean", "rms", "gradients")
  header += ("change of a step", "worst gradient")
  return (
    "## Against float64 on CPU\n\nNats of a token; ‖x − x₆₄‖ / ‖x₆₄‖ of "
    "gradients and of what one step of AdamW changes.\n\n"
    + _table(header, rows)
  )


def _worst(by_kind) -> str:
  # No number is the worst.
  name = max(by_kind, key=lambda k: (math.isnan(by_kind[k]), by_kind[k]))
  return f"{name} {by_kind[name]:.1e}"


def _races(part, found, ceilings, facts) -> str:
  """A table of both sides, and below it what else is to be known."""
  fastest = {}
  for key, value in found.items():
    shape, rate = key.split(" | ")[0], _at(value, OURS, "tokens_per_second")
    fastest[shape] = max(fastest.get(shape, 0), rate or 0)
  several = any(" | " in key for key in found)
  rows, notes = [], []
  for key, value in found.items():
    shape = key.split(" | ")[0]
    for side in (OURS, THEIRS):
      if side not in value:
        continue
      one = value[side]
      rate = f"{one['tokens_per_second']:,.0f}"
      if several and one["tokens_per_second"] == fastest[shape]:
        rate = f"**{rate}**"
      share = one["flops_per_second"] / ceilings[0] if ceilings[0] else None
      memory = one.get("memory") or {}
      ratio = value.get("ratio") if side == OURS else None
      rows.append(
        (
          key,
          side + (", alone" if one["alone"] else ""),
          one.get("way", ""),
          one["rows"],
          rate,
          _share(one["mfu"]),
          _share(share),
          _number(memory.get("gib"), ".2f"),
          "{:.2f} ({:.2f} to {:.2f})".format(*ratio) if ratio else "",
        )
      )
    notes += _notes(key, value)
  if facts.get("devices") != 1:
    notes.append(f"- {THEIRS} is measured beside one device only")
  header = ("shape", "", "way", "rows", "tokens/s", "MFU", "of the product")
  header += ("peak GiB", "ours is × as fast")
  title = part.replace("_", " ").capitalize()
  return f"## {title}\n\n{_table(header, rows)}\n\n" + "\n".join(notes)


def _notes(key, value) -> list[str]:
  lines = []
  for side, one in value.items():
    if isinstance(one, dict) and one.get("note"):
      lines.append(f"- {key}, {side}: {one['note']}")
  for side, why in value.get("failed", {}).items():
    lines.append(f"- {key}, {side} failed: {why}")
  if agree := value.get("agree"):
    told = ", ".join(
      f"{name.replace('_', ' ')} {_list(x)}" for name, x in agree.items()
    )
    lines.append(f"- {key}: {told}")
  elif THEIRS not in value and not value.get("variant"):  # a sweep is ours
    lines.append(f"- {key}: ours alone was measured")
  if value.get("partial"):
    lines.append(f"- {key}: not all turns were taken")
  return lines


def _list(x) -> str:
  if isinstance(x, list):
    return " ".join(map(_list, x))
  return f"{x:.6g}"


def _pieces(unused_part, found, ceilings, unused_facts) -> str:
  rows = []
  for key, one in found.items():
    line = [
      key,
      _time(one["seconds"]),
      _number(one["flops"] / one["seconds"], ",.1f", 1e-12),
      _number(one["bytes"] / one["seconds"], ",.0f", 1e-9),
    ]
    if None not in ceilings:
      times = one["flops"] / ceilings[0], one["bytes"] / ceilings[1]
      name = ("product", "copy")[times[1] > times[0]]
      line += [_time(max(times)), name, _share(max(times) / one["seconds"])]
    rows.append(line + [""] * (7 - len(line)))
  header = ("piece", "time", "TFLOP/s", "GB/s", "at the ceiling", "which is")
  return "## Pieces of a step\n\n" + _table((*header, "reached"), rows)


def _resume(unused_part, found, unused_ceilings, unused_facts) -> str:
  rows = [
    (
      mode,
      f"{one['killed_after']} of {one['steps']}",
      "equal to the bit" if one["equal"] else "not equal",
      f"{one['most train/loss']:.1e}",
      f"{one['most train/grad_norm']:.1e}",
      one.get("first train/loss", ""),
      _time(one["step_seconds"]),
    )
    for mode, one in found.items()
  ]
  header = ("operations", "killed after step", "losses and gradient norms")
  header += ("most of a loss", "of a norm", "first step that differs", "a step")
  return (
    "## Killed and resumed\n\nA step's time is the median of the "
    "run in one go; all runs of all rows share the device.\n\n"
    + _table(header, rows)
  )


def _demo(unused_part, found, unused_ceilings, unused_facts) -> str:
  (one,) = found.values()
  rows = [(job, f"{seconds:.1f}") for job, seconds in one["jobs"].items()]
  end = "to its end" if one["finished"] else "as far as there was time"
  return f"## The demo, {end}, {one['seconds']:.0f} s here\n\n" + _table(
    ("job", "seconds"), rows
  )


_SECTIONS = {
  "device": _device,
  "correctness": _correctness,
  "scoring": _races,
  "training": _races,
  "more_training": _races,
  "pieces": _pieces,
  "resume": _resume,
  "demo": _demo,
}


def _missing(parts, run, other) -> str:
  lines = [
    f"- {part}, {key}: {why}"
    for part, content in parts.items()
    for key, why in content["failed"].items()
  ]
  lines += [f"- {part}: {why}" for part, why in run.get("notes", {}).items()]
  lines += [
    f"- {part}: {_OTHER if part in other else _NOT_RUN}"
    for part in _SECTIONS
    if part not in parts
  ]
  return "## What is missing\n\n" + ("\n".join(lines) or "Nothing.")


def publish(out: pathlib.Path) -> str:
  """Copies page and results to docs/accelerators/, and lists all there."""
  facts = results.read(out / "result.json")["facts"]
  words = f"{facts['devices']}x {facts['device_kind']} {facts['size']}"
  name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
  for file, ending in (("result.json", "json"), ("page.md", "md")):
    results.write(_DOCS / f"{name}.{ending}", (out / file).read_text())
  rows = []
  for path in sorted(_DOCS.glob("*.json")):
    found = results.read(path)
    met = sum(state == "met" for _, state, _ in goals(found))
    facts = found["facts"]
    rows.append(
      (
        f"[{facts['devices']} × {facts['device_kind']}]({path.stem}.md)",
        facts["date"][:10],
        facts["size"],
        f"{met} of {len(_GOALS)}",
      )
    )
  index = _DOCS / "README.md"
  before, rest = index.read_text().split(_BEGIN)
  after = rest.split(_END)[1]
  table = _table(("device", "date", "size", "goals met"), rows)
  results.write(index, f"{before}{_BEGIN}\n{table}\n{_END}{after}")
  return f"published: {_DOCS / name}.md"
