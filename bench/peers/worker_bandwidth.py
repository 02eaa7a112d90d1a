"""Measures plain reading of memory by all threads with lynx_rt's own probe: {"gb_per_s": RATE}. See workload.py."""

from __future__ import annotations

import workload as shared

BYTES = 1 << 29  # large against any cache
REPEATS = 8


def main() -> None:
    workload, report = shared.begin()
    from lynx_rt import _C

    probe = _C.BandwidthProbe(workload.threads, BYTES)
    probe.measure()  # the first measurement allocates the pages
    for _ in range(REPEATS):
        report(gb_per_s=probe.measure())


if __name__ == "__main__":
    main()
