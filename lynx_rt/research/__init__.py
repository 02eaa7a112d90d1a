"""Measures methods: evaluation, studies, recorded routing, simulation, calibration."""
