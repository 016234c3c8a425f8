"""The study of one-to-many augmentation on `scenes`: `python -m benchmarks.study`."""
