"""Timings: ours against its floor, the field's own way or another library, both measured in the same run.

``python -m benchmarks`` runs all, ``python -m benchmarks mat_step`` one. What is measured is CPU time, so that a busy
machine does not decide the outcome.
"""
