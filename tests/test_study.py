"""The studies of docs/results.md: what is planted, what is configured."""

import collections
import pathlib
import runpy

import pytest

from benchmarks.study import planted
from miniplm_jax import config as config_lib

STUDY = runpy.run_path(
  str(pathlib.Path(__file__).parents[1] / "configs" / "study.py")
)
TOKENS = {"train": 6000, "reference": 3000, "heldout": 1500}


def documents(seed=10):
  """Of six domains with 40 documents each, counted in words."""
  names = ("a", "b", "c", "d", *planted.OUTSIDE)
  domains = {
    name: [f"{name}{i} " + "x1 and some words " * 60 for i in range(40)]
    for name in names
  }
  count = lambda text: len(text.split())  # noqa: E731
  return list(planted.plant(domains, TOKENS, count, seed))


def test_each_label_is_a_third_and_no_text_is_used_twice():
  every = documents()
  assert every == documents() != documents(11)
  tokens, largest = collections.Counter(), collections.Counter()
  for one in every:
    key = one["split"], one["label"]
    assert one["clean"] == (one["label"] == planted.CLEAN)
    if one["domain"] in planted.OUTSIDE:
      assert key == ("heldout", planted.CLEAN)
      continue
    n = len(one["text"].split())
    tokens[key] += n
    largest[key] = max(largest[key], n)
  assert len(tokens) == 9
  for (split, label), n in tokens.items():
    kinds = planted.KINDS.get(label, "abcd")
    assert 0 <= n - TOKENS[split] <= len(kinds) * largest[split, label]
  clean = [one["text"] for one in every if one["clean"]]
  assert len(set(clean)) == len(clean)
  # A shuffled text has the words of a document that is not there itself.
  words = {tuple(sorted(text.split())) for text in clean}
  shuffled = [one["text"] for one in every if one["domain"] == "shuffled"]
  assert shuffled and not words & {tuple(sorted(t.split())) for t in shuffled}
  assert {one["domain"] for one in every if not one["clean"]} == {
    *STUDY["WASTE"]
  }


def test_too_little_text_is_said():
  with pytest.raises(ValueError, match="domain a has too little text"):
    list(planted.plant({"a": ["one"]}, {"train": 100}, len))


@pytest.mark.parametrize("which", STUDY["COMPARED"])
def test_configs_can_be_meant(which):
  config = config_lib.from_dict(STUDY["get_config"](which), "study.py")
  names = config.compare.definitions
  assert len(names) == len(STUDY["COMPARED"][which]) + 1
  assert config.evaluate.ignore_domains == STUDY["WASTE"]


def test_another_config_is_refused():
  with pytest.raises(ValueError, match="nope is none of"):
    STUDY["get_config"]("nope")
