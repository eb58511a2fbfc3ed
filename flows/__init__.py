"""Prefect flows and the command line: in which order stages run. No arithmetic, no file formats."""
