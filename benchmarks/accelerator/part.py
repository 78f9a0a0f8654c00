"""Runs one part: python -m benchmarks.accelerator.part SETTINGS."""

import importlib
import sys

from benchmarks.accelerator.results import Store
from benchmarks.accelerator.settings import Settings

_MODULES = dict.fromkeys(("scoring", "training", "more_training"), "races")


def main(argv: list[str]):
  """Runs the part that the settings name."""
  settings = Settings.read(argv[1])
  name = _MODULES.get(settings.part, settings.part)
  module = importlib.import_module(f"benchmarks.accelerator.{name}")
  module.run(settings, Store(settings))


if __name__ == "__main__":
  main(sys.argv)
