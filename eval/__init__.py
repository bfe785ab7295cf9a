"""Evaluation: engines, one module a benchmark, graders, a sandbox for generated code, and records one can audit."""
