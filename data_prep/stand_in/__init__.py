"""A stand-in for Gemini: a real HTTP server with its protocol, answers from a file, and faults on demand."""

from data_prep.stand_in.server import StandIn
from data_prep.stand_in.state import StandInOptions

__all__ = ["StandIn", "StandInOptions"]
