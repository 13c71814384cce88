"""Where the project is, and the datasets beside it, which are not part of it."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
DATASETS = PROJECT.parent / "shared" / "datasets"
