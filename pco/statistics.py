"""The old name of `pco.evaluation.intervals`, kept for one release."""

import warnings

from pco.evaluation.intervals import adjusted, detectable_difference, paired_interval, sign_test

__all__ = ["adjusted", "detectable_difference", "paired_interval", "sign_test"]

warnings.warn(
    "pco.statistics is now pco.evaluation.intervals; the old name will be removed in the next release.",
    DeprecationWarning,
    stacklevel=2,
)
