"""Traces: what backbone and exits did on one split. Importing them needs no torch."""

from cee_gym.traces.trace import Readout, Trace, TraceWriter

__all__ = ["Readout", "Trace", "TraceWriter"]
