"""`quire up`: the World of one machine, without a cluster."""

from quire.up.command import run_up

__all__ = ["run_up"]
