"""How pictures of reports look, and what several of them draw."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Color-blind safe (Okabe and Ito), in this order everywhere.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Of many lines in one picture: colors, then the same with another dash.
LINES = tuple(
  {"color": color, "linestyle": dash}
  for dash in ("-", "--", ":")
  for color in COLORS
)
# Methods and criteria that take rows at random: of one color in every picture.
_RANDOM = ("random", "pretrain")
GRAY = "#8C949E"
PALE = "#C9CFD6"
INK = "#1B1F24"


def axes(
  title: str,
  x: str,
  y: str,
  width: float = 5.6,
  height: float = 3.6,
  of: Any = None,
  place: tuple[int, int, int] = (1, 1, 1),
):
  """A figure of its own, without pyplot's global state; or a place `of` one.

  Returns:
    (figure, axes).
  """
  from matplotlib.figure import Figure

  figure = of or Figure(figsize=(width, height), layout="constrained")
  ax = figure.add_subplot(*place)
  ax.set_title(title, fontsize=10, loc="left", fontweight="bold", color=INK)
  ax.set_xlabel(x, fontsize=9, color=INK)
  ax.set_ylabel(y, fontsize=9, color=INK)
  ax.tick_params(labelsize=8, color=GRAY, labelcolor=INK)
  ax.spines[["top", "right"]].set_visible(False)
  ax.spines[["left", "bottom"]].set_color(GRAY)
  ax.grid(color="#E6EAEE", lw=0.7)
  ax.set_axisbelow(True)
  return figure, ax


def density(ax, x, y):
  """Hexagons in which rows are counted, on a logarithmic scale."""
  from matplotlib.colors import LinearSegmentedColormap

  few_to_many = ["#C3D9EA", COLORS[0], "#06182B"]
  shades = LinearSegmentedColormap.from_list("", few_to_many)
  options = {"gridsize": 48, "bins": "log", "mincnt": 1, "linewidths": 0.1}
  return ax.hexbin(x, y, cmap=shades, **options)


def plain(text: str) -> str:
  """A name from data as matplotlib shows it as it is: $ begins no maths."""
  return text.replace("$", r"\$")


def legend(ax, **options):
  """A legend that can be read over the drawing; a long one stands beside it."""
  box = {"facecolor": "white", "edgecolor": "none", "framealpha": 0.85}
  if len(ax.get_legend_handles_labels()[1]) > len(COLORS):
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    options = beside | options
  ax.legend(fontsize=8, **box, **options)


def curves(
  ax, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], **options
):
  """Draws a line for each name, with a legend; an empty one is left out.

  Of `lines`, x and y by name.
  """
  for name, style in styles(lines).items():
    if len(lines[name][0]):
      ax.plot(*lines[name], **style, label=plain(name), **options)
  legend(ax)


def styles(names: Iterable[str]) -> dict[str, dict[str, str]]:
  """The color and dash of each, in order; what is random comes first."""
  names = sorted(names, key=lambda name: not name.startswith(_RANDOM))
  return dict(zip(names, LINES))


def picture(figure) -> str:
  """A figure as inline PNG data; the same figure gives the same bytes."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
  return base64.b64encode(buffer.getvalue()).decode()
