"""Pairwise Cringe Optimization: everything that can be right or wrong. Imports neither prefect, flows nor tasks."""
