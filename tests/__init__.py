"""The tests mirror the tree; `tests.builders` makes what they need, `tests.tiny_model` a model to run for real."""
