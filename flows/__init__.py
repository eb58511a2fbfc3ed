"""Prefect flows and the command line: in which order stages run. No arithmetic, no file formats."""

from pco_pipeline import come_first

come_first()  # before any import of our other packages, also where `pco_pipeline` is not what Python was started with
