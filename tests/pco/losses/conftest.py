"""Lets the test modules of this folder import the oracle and the cases beside them."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# How long an example takes says nothing about the losses.
settings.register_profile("losses", settings(), deadline=None)
settings.load_profile("losses")
