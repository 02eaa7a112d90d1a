"""LYNX_RT_ISA: an engine computes on the instruction set that it names, whichever the CPU's best is."""

import pytest
from isas import SUPPORTED

import lynx_rt
from lynx_rt import _C


@pytest.mark.parametrize("isa", SUPPORTED)
def test_forced(isa: str, monkeypatch: pytest.MonkeyPatch, nano_path: str) -> None:
    monkeypatch.setenv("LYNX_RT_ISA", isa)
    assert _C.build_info()["isa"] == isa
    with lynx_rt.Engine(nano_path, num_threads=1, max_num_seqs=1) as engine:
        assert engine.device == f"cpu {isa}, 1 threads, bfloat16"
        params = lynx_rt.SamplingParams(temperature=0, max_tokens=4)
        assert engine.generate("Q: 12 times 22 = ?\nA:", params, use_tqdm=False)[0].outputs[0].text == " 264"
    # The engine's own option wins over the variable.
    other = "scalar" if isa != "scalar" else SUPPORTED[-1]
    with lynx_rt.Engine(nano_path, num_threads=1, max_num_seqs=1, isa=other) as engine:
        assert engine.device.startswith(f"cpu {other},")


def test_wrong_names(monkeypatch: pytest.MonkeyPatch, nano_path: str) -> None:
    monkeypatch.setenv("LYNX_RT_ISA", "sse2")
    with pytest.raises(lynx_rt.ValidationError, match='got "sse2"'):
        lynx_rt.Engine(nano_path, num_threads=1)
