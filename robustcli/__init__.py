"""Adversarial defences for vision and vision-language models, and the honest measurement of any defence."""

__version__ = "0.1.0"
