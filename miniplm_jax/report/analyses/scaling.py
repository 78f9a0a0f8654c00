"""L(C) = A / C^a + L∞, fitted to a learning curve; what it says of more data.

The form is MiniPLM's (section 3.2; Hoffmann et al., arXiv 2203.15556, at a
fixed model).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from miniplm_jax.report import plots
from miniplm_jax.report.analyses.base import Analysis, NoInputs
from miniplm_jax.report.inventory import Inventory, Student, same_rows
from miniplm_jax.report.page import Section, Table

# 2·10⁶ and 2·10⁷ steps of 512 × 1024: what the paper calls 1T and 10T.
TOKENS = {"1T": 2e6 * 512 * 1024, "10T": 2e7 * 512 * 1024}
_LEAST = 5  # points: one more than makes a deviation from three parameters
_DRAWN = 60  # points of a drawn curve


@dataclasses.dataclass(frozen=True)
class Law:
  """A fitted law."""

  log_A: float  # natural logarithm of A
  a: float  # the exponent
  floor: float  # L∞, nats
  covariance: list[list[float]]  # [3][3], of log_A, a and L∞
  points: int  # that it was fitted to
  residual: float  # root mean square of the deviations, over points − 3

  def loss(self, compute: np.ndarray) -> np.ndarray:
    """L at so many FLOPs, nats."""
    return np.exp(self.log_A - self.a * np.log(compute)) + self.floor

  def margin(self, compute: np.ndarray) -> np.ndarray:
    """Half the width of the band of 95 % at so many FLOPs, nats."""
    from scipy import stats

    compute = np.asarray(compute, np.float64)
    above = self.loss(compute) - self.floor
    gradient = np.stack(
      [above, -above * np.log(compute), np.ones_like(above)], -1
    )
    variance = np.einsum(
      "...i,ij,...j->...", gradient, np.array(self.covariance), gradient
    )
    t = stats.t.ppf(0.975, self.points - 3)
    return t * np.sqrt(np.maximum(variance, 0))


def fit(compute: np.ndarray, loss: np.ndarray) -> Law:
  """Fits the law by least squares.

  Args:
    compute: float [n], FLOPs, n at least 5.
    loss: float [n], nats.

  Raises:
    ValueError: there are too few points, or they do not determine the law.
  """
  import warnings

  from scipy import optimize

  if len(compute) < _LEAST:
    raise ValueError(f"{len(compute)} points, at least {_LEAST} are needed")
  logs = np.log(compute)
  # About the middle the amplitude does not hang together with the exponent.
  middle = logs.mean()

  def of(x, log_b, a, floor):
    return np.exp(np.clip(log_b - a * x, -700, 700)) + floor

  with warnings.catch_warnings():
    warnings.simplefilter("ignore", optimize.OptimizeWarning)
    try:
      best, covariance = optimize.curve_fit(
        of,
        logs - middle,
        loss,
        p0=_start(logs - middle, loss),
        maxfev=20_000,
        xtol=1e-12,
        ftol=1e-12,
      )
    except RuntimeError as e:
      raise ValueError("least squares does not converge") from e
  if not np.all(np.isfinite(covariance)):
    raise ValueError("its points do not determine three parameters")
  log_b, a, floor = best
  if a <= 0:
    raise ValueError("the loss does not fall toward a floor")
  deviation = loss - of(logs - middle, *best)
  # log_A = log_b + a · middle
  shift = np.array([[1, middle, 0], [0, 1, 0], [0, 0, 1]])
  return Law(
    log_A=float(log_b + a * middle),
    a=float(a),
    floor=float(floor),
    covariance=(shift @ covariance @ shift.T).tolist(),
    points=len(compute),
    residual=float(np.sqrt(np.sum(deviation**2) / (len(compute) - 3))),
  )


def _start(x: np.ndarray, loss: np.ndarray) -> tuple[float, float, float]:
  """The best of some exponents: at a given one the law is a line."""
  starts = []
  for a in np.geomspace(0.02, 4, 40):
    falling = np.exp(-a * x)
    design = np.stack([falling, np.ones_like(x)], 1)
    (b, floor), *_ = np.linalg.lstsq(design, loss)
    error = np.sum((design @ (b, floor) - loss) ** 2)
    if b > 0:
      starts.append((error, np.log(b), a, floor))
  if not starts:
    raise ValueError("the loss does not fall toward a floor")
  return min(starts)[1:]


def measure(workdir: Inventory) -> dict[str, Any]:
  """A law for each student, with what it says of 1T and 10T tokens.

  Raises:
    NoInputs: no student's curve gives one.
  """
  laws, refused = {}, {}
  _, left_out = same_rows(workdir.students, "training")
  for name in left_out:
    refused[name] = "its held-out losses are of other rows than most"
  for name, student in workdir.students.items():
    if student.begins_with:
      refused[name] = "it began with given weights, whose compute is not known"
    if name in refused:
      continue
    try:
      laws[name] = _measured(student)
    except ValueError as e:
      refused[name] = str(e)
  if not laws:
    words = "; ".join(f"{name}: {why}" for name, why in refused.items())
    raise NoInputs(words or "there is no student: run --stages=train")
  return {"laws": laws, "refused": refused}


def _measured(student: Student) -> dict[str, Any]:
  """The law of a student's curve; raises ValueError as `fit` does."""
  steps, losses = student.curve()
  parameters = student.training.counts["parameters"]
  of_step = 6 * parameters * student.per_step("tokens")
  is_warm = steps > student.warmup
  compute, losses = steps[is_warm] * of_step, losses[is_warm]
  law = fit(compute, losses)
  after = 6 * parameters * np.array([*TOKENS.values()])
  return {
    "law": dataclasses.asdict(law),
    "parameters": parameters,
    "compute": compute.tolist(),
    "loss": losses.tolist(),
    "extrapolated": {
      label: {"loss": float(value), "margin": float(margin)}
      for label, value, margin in zip(
        TOKENS, law.loss(after), law.margin(after)
      )
    },
  }


def render(figures: Mapping[str, Any]) -> Section:
  """The table, and the curves with their bands."""
  columns = ("student", ("points", "d"), ("A", ".3g"), ("a", ".3f"))
  columns += (("L∞", ">"), ("residual", ".2g"))
  columns += tuple((f"loss after {label} tokens", ">") for label in TOKENS)
  figure, ax = plots.axes(
    "Held-out loss, fitted", "FLOPs (6·N·tokens)", "nats per token"
  )
  rows = []
  for style, (name, fitted) in zip(plots.LINES, figures["laws"].items()):
    law = Law(**fitted["law"])
    error = law.margin(np.array([1e300]))[0]  # where only L∞ is left
    rows.append(
      (
        name,
        law.points,
        np.exp(law.log_A),
        law.a,
        f"{law.floor:.3f} ± {error:.2g}",
        law.residual,
        *(
          f"{value['loss']:.3f} ± {value['margin']:.2g}"
          for value in fitted["extrapolated"].values()
        ),
      )
    )
    compute = np.array(fitted["compute"])
    # Ten times what was trained, no further: the rest is in the table.
    drawn = np.geomspace(compute[0], 10 * compute[-1], _DRAWN)
    value, margin = law.loss(drawn), law.margin(drawn)
    ax.plot(compute, fitted["loss"], "o", ms=3, color=style["color"])
    ax.plot(drawn, value, **style, lw=1.3, label=plots.plain(name))
    ax.fill_between(
      drawn, value - margin, value + margin, color=style["color"], alpha=0.15
    )
  ax.set_xscale("log")
  losses = np.concatenate([x["loss"] for x in figures["laws"].values()])
  room = np.ptp(losses) or 1.0
  ax.set_ylim(losses.min() - room, losses.max() + 0.2 * room)
  plots.legend(ax)
  caption = (
    "Points of the learning curves, the fitted laws up to ten times the "
    "compute, and their bands of 95 %."
  )
  refused = figures["refused"].items()
  return Section(
    table=Table(columns, rows),
    notes=[f"{name}: no law, {why}." for name, why in refused],
    pictures=[(plots.picture(figure), caption)],
  )


ANALYSIS = Analysis(
  "Scaling law",
  "L(C) = A / C^a + L∞, held-out loss in nats (mean over rows of the mean per "
  "token) by C = 6·N·tokens, N all of the student's parameters; a teacher's "
  "FLOPs are not in C. Least squares over the points of the learning curve "
  "after warm-up. The band is 95 %: covariance of the fit, its gradient, "
  "Student's t. It takes errors for independent and the form for true; points "
  "of one run are neither, and all but the last were measured at a learning "
  "rate that had not yet decayed.",
  measure,
  render,
)
