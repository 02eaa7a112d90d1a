"""Structured output: what a text must look like, and the masks of the tokens that keep it so."""
