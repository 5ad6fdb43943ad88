"""The tiny models of other floors' tests."""

import sys
from pathlib import Path

for floor in ("nn", "models", "serve", "talk", "convert"):
    sys.path.append(str(Path(__file__).parents[1] / floor))
