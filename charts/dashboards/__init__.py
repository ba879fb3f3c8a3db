"""Quire's Grafana dashboards, described in Python and written as JSON: see `__main__`."""
