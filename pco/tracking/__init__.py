"""A run in the experiment tracker of your choice: MLflow, Weights & Biases, TensorBoard, trackio.

What trackers are told is read from the tables and manifests on disk, never from a running stage: so a tracker that was
down misses nothing, and one that is named after the run has ended gets the whole of it.
"""

from pco.tracking.follower import following
from pco.tracking.tracked import sync

__all__ = ["following", "sync"]
