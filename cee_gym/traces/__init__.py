"""Traces: what backbone and exits did on one split. Importing them needs no torch."""

from cee_gym.traces.header import TraceHeader
from cee_gym.traces.readout import Readout, read_out
from cee_gym.traces.trace import Trace
from cee_gym.traces.writer import TraceWriter

__all__ = ["Readout", "Trace", "TraceHeader", "TraceWriter", "read_out"]
