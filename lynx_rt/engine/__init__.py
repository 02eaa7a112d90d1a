"""Requests and their engine: options in, the thread that drives the compiled core, outputs."""
