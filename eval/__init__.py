"""Evaluation: engines, one module a benchmark, graders, sandbox, report."""
