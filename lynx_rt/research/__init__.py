"""What measures methods: evaluation, studies, recorded routing, simulation, calibration."""
