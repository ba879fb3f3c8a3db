"""The one place that says which version this is."""

__version__ = "0.2.0"
"""Of packages, chart and images alike; `make version VERSION=...` changes it."""
