"""A stand-in for Gemini: a real HTTP server with its protocol, answers from a file, and faults to order."""

from data_prep.stand_in.server import StandIn

__all__ = ["StandIn"]
