"""Where things lie in a checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"  # on the path of every test: ``from support.runs import small``
NOTEBOOK_FOLDER = ROOT / "notebooks"
APP = ROOT / "app" / "streamlit_app.py"
