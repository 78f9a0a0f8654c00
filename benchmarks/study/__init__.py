"""The studies of docs/results.md; see configs/study.py."""
