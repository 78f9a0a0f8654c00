"""The studies of docs/results.md: what is planted, what is configured."""

import collections
import gzip
import pathlib
import runpy

import pytest

from benchmarks.study import mess, planted
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


LINE = "The rain of the day falls and that is to be, with what we have.\n"
# Name → bytes, its kind, and how many documents it is.
FILES = {
  "a/man1/a.1.gz": (gzip.compress((LINE * 40).encode()), "man", 1),
  "a/copyright": ((LINE * 20).encode(), "copyright", 1),
  "b/COPYING": ((LINE * 20).encode(), "copyright", 1),
  "a/changelog.gz": (gzip.compress((LINE * 30).encode()), "changelogs", 1),
  "a/locale/de.json": ((LINE * 6).encode(), "translations", 1),
  "a/index.html": (("<p>" + LINE * 20).encode(), "html", 1),
  "a/min.js": (("x=1;" * 60_000).encode(), "scripts", 8),
  "a/data.json": (b'{"a": 1}' * 100, "data", 1),
  "a/notes": (("ä" * 4_999 + "\n" + "bü" * 99_000).encode(), "other", 8),
  # No text, of another encoding, damaged, too short.
  "a/program": (b"\x7fELF\0\0" * 100, "other", 0),
  "a/old.txt": ((LINE * 20).replace("a", "ä").encode("latin-1"), "other", 0),
  "a/half.gz": (gzip.compress((LINE * 30).encode())[:60], "other", 0),
  "a/short": (b"short", "other", 0),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
  folder = tmp_path_factory.mktemp("packages")
  for name, (data, _, _) in FILES.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  (folder / "link").symlink_to(folder / "a/index.html")
  return folder


def test_files_of_packages_are_documents_of_a_kind(packages):
  for name, (data, kind, n) in FILES.items():
    assert mess.kind(pathlib.Path(name)) == kind
    found = mess.pieces(packages / name)
    assert len(found) == n, name
    text = gzip.decompress(data) if n and name.endswith(".gz") else data
    assert not n or text.decode().startswith("".join(found))
    assert all(len(one) <= 8000 for one in found)
  assert not mess.pieces(packages / "link") and not mess.pieces(packages / "a")
  assert len(mess.pieces(packages / "a/notes")[0]) == 5000  # at a line's end


def collected(tokens, packages=None, seed=10):
  """Of four domains with 40 documents each, counted in characters."""
  domains = {
    name: [f"{name}{i} " + LINE * 15 for i in range(40)]
    for name in ("books", "code", *planted.OUTSIDE)
  }
  return list(mess.collect(domains, tokens, len, packages, seed))


def test_a_mess_is_three_fifths_and_its_target_is_clean(packages):
  sizes = {"heldout": 2000, "train": 16_000, mess.TARGET: 1500}
  every = collected(sizes, packages)
  assert every == collected(sizes, packages) != collected(sizes, packages, 11)
  texts = [one["text"] for one in every]
  assert len({*texts}) == len(texts)  # one of the equal licenses
  length, largest = collections.Counter(), 64_000
  for one in every:
    length[one["split"], mess.label(one["domain"])] += len(one["text"])
    assert one["quality"] == mess.quality(one["text"])
  for split, n in sizes.items():
    is_target = split == mess.TARGET
    for label, share in mess.LABELS.items():
      wanted = n * (label == mess.CLEAN if is_target else share)
      assert 0 <= length[split, label] - wanted <= largest * (wanted > 0)
  with pytest.raises(ValueError, match="too little mess text"):
    collected({"train": 80_000}, packages)
  with pytest.raises(ValueError, match="too little clean text"):
    collected({"heldout": 500_000}, packages)


def test_what_is_clean_alone_has_two_domains_held_out():
  every = collected({"train": 9000, "heldout": 4000})
  by_split = {
    split: {one["domain"] for one in every if one["split"] == split}
    for split in ("train", "heldout")
  }
  assert by_split["train"] == {"books", "code"}
  assert by_split["heldout"] >= {*planted.OUTSIDE}


def test_quality_counts_the_rules_that_a_text_keeps():
  """Each text breaks one of Gopher's rules more than prose does."""
  words = "the day and of rain falls as it has on every other one before it"
  prose = f"{words} ".capitalize() * 5
  n = len(prose.split())
  stops = sum(word in ("the", "and", "of") for word in prose.lower().split())
  assert mess.quality(prose) == pytest.approx(7 + stops / (n + 1))
  for broken in (
    words,  # 15 words
    prose.replace("falls", "f" * 120),
    prose + "#" * 9,
    "\n".join(f"- {words}" for _ in range(5)),
    "\n".join(f"{words}…" for _ in range(5)),
    prose + "1234 " * 40,
    prose.replace("the", "a").replace("The", "A").replace("of", "o"),
  ):
    assert 6 <= mess.quality(broken) < 7
  assert mess.quality("") == 3


@pytest.mark.parametrize("which", STUDY["COMPARED"])
def test_configs_can_be_meant(which):
  for small in (False, True):
    given = STUDY["get_config"](which, small)
    config = config_lib.from_dict(given, "study.py")
    names = config.compare.definitions
    assert len(names) == len(STUDY["COMPARED"][which]) + 1
    ignored = {"mess": mess.KINDS, "clean": planted.OUTSIDE}
    ignored = ignored.get(which, planted.WASTE)
    assert config.evaluate.ignore_domains == tuple(ignored)
  # At most one pass over the half of D that is kept; so many at each size.
  kept = {"mess": 20e6, "clean": 10e6}.get(which)
  tokens = config.train.steps * config.train.batch_size * 128
  assert not kept or tokens == pytest.approx(kept, rel=1e-3)


def test_another_config_is_refused():
  with pytest.raises(ValueError, match="nope is none of"):
    STUDY["get_config"]("nope")
