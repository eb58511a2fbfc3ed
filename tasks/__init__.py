"""Prefect tasks: how often and where a stage runs. Each calls one stage of pco."""
