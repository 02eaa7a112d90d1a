"""Requests and their engine: its options, the driver of the compiled core, and its outputs."""
