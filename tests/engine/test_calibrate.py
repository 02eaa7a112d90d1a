"""lynx_rt.research.calibrate: similarities against float64, stand-ins, and the file, read by the engine and the safetensors package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tm
import torch
from safetensors.numpy import load_file, save_file

from lynx_rt import Engine, UnsupportedModelError, ValidationError
from lynx_rt.cli.main import main
from lynx_rt.research.calibrate import Calibration, calibrate, text_sequences
from lynx_rt.research.tensor_file import write_tensors

TASKS = Path(__file__).parents[2] / "bench" / "tasks"
F32_BOUND = 1e-4  # of a row's largest value: tests/model/test_transformers_parity.py


# A hidden size that is no multiple of any vector.
ODD = tm.Tiny("odd_hidden", (2, 1, 8), 45, 61, (6, 2, 9))
MODELS = tm.ALL | {ODD.name: ODD}


@pytest.fixture(scope="module")
def folder(tiny_path: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns folder(name) -> that checkpoint."""
    odd = tm.write(ODD, tmp_path_factory.mktemp("odd") / ODD.name)
    return lambda name: odd if name == ODD.name else tiny_path(name)


def engine(path: str, **options: Any) -> Engine:
    return Engine(path, skip_tokenizer_init=True, **({"num_threads": 1} | options))


def sequences_of(name: str, lengths: tuple[int, ...] = (1, 30, 0, 140)) -> list[list[int]]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, MODELS[name].vocab, n).tolist() for n in lengths]


def expert_outputs(path: str, sequences: list[list[int]]) -> tuple[list[Any], list[Any]]:
    """float64 from transformers, per MoE layer: outputs [E, tokens, H] and router scores [tokens, E]."""
    model = tm.reference(path, "float64")
    layers = [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    inputs: list[list[Any]] = [[] for _ in layers]
    for mlp, seen in zip(layers, inputs, strict=True):
        mlp.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    outputs, scores = [], []
    with torch.no_grad():
        for ids in filter(None, sequences):
            model(torch.tensor([ids]), use_cache=False)
        for mlp, seen in zip(layers, inputs, strict=True):
            x = torch.cat(seen)
            scores.append((x @ mlp.gate.weight.T).numpy())
            each = []
            for gate_up, down in zip(mlp.experts.gate_up_proj, mlp.experts.down_proj, strict=True):
                gate, up = (x @ gate_up.T).chunk(2, dim=-1)
                each.append(((torch.nn.functional.silu(gate) * up) @ down.T).numpy())
            outputs.append(np.stack(each))
    return outputs, scores


@pytest.mark.parametrize("metric", ["frobenius", "cosine"])
@pytest.mark.parametrize("name", ["plain", "mixed", "groups3", ODD.name])
def test_similarity_against_float64(folder: Any, name: str, metric: Any) -> None:
    """The bound is that of the parity tests on each output; what it does to a norm, a quotient and a cosine follows."""
    path, sequences = folder(name), sequences_of(name)
    with engine(path) as e:
        got = calibrate(e, sequences, metric=metric)
    outputs, scores = expert_outputs(path, sequences)
    assert got.num_tokens == sum(map(len, sequences)) and len(got.similarity) == len(outputs)
    for layer, y in enumerate(outputs):
        experts, _, hidden = y.shape
        off = F32_BOUND * np.abs(y).max(-1) * np.sqrt(hidden)  # [E, tokens] bound on the error of an output's norm
        if metric == "frobenius":
            distance = np.sqrt(((y[:, None] - y[None]) ** 2).sum((-1, -2)))
            expected = 1 - distance / distance.max()
            error = np.sqrt((off**2).sum(-1))
            error = error[:, None] + error[None]
            bound = error / distance.max() + distance * error.max() / distance.max() ** 2
        else:
            norm = np.sqrt((y**2).sum(-1))
            cosine = (y[:, None] * y[None]).sum(-1) / (norm[:, None] * norm[None])
            expected = (cosine.mean(-1) + 1) / 2
            bound = 2 * ((off / norm)[:, None] + (off / norm)[None]).mean(-1) / 2
        np.testing.assert_array_less(np.abs(got.similarity[layer] - expected), 1.01 * bound + 1e-6)
        assert (got.similarity[layer] == got.similarity[layer].T).all() and (np.diag(got.similarity[layer]) == 1).all()
        assert bound.max() < 0.05 * (expected.max(initial=0, where=~np.eye(experts, dtype=bool)) - expected.min())

        k = MODELS[name].experts[1]  # type: ignore[index]
        ranked = -np.sort(-scores[layer], axis=1)
        sure = ranked[:, k - 1] - ranked[:, k] > 2 * F32_BOUND * np.abs(ranked).max(1)
        usage = np.bincount(np.argsort(-scores[layer], axis=1)[:, :k].ravel(), minlength=experts)
        assert (
            np.abs(usage - got.usage[layer]).sum() <= 2 * (~sure).sum() and got.usage[layer].sum() == got.num_tokens * k
        )


@pytest.mark.parametrize("metric", ["frobenius", "cosine"])
def test_bits_do_not_depend_on_threads(folder: Any, metric: Any) -> None:
    with engine(folder("many")) as one, engine(folder("many"), num_threads=2) as two:
        a, b = (calibrate(e, sequences_of("many"), metric=metric) for e in (one, two))
    assert np.array_equal(a.similarity, b.similarity) and np.array_equal(a.usage, b.usage)


def test_inputs_are_those_of_own_routing(folder: Any) -> None:
    """They are, whatever policy is set, even one that acts on prompts; and running requests go on unchanged."""
    with engine(folder("many")) as e:
        expected = calibrate(e, sequences_of("many"))
        alone = (
            e.generate({"prompt_token_ids": [1, 2, 3]}, {"temperature": 0.0, "max_tokens": 9})[0].outputs[0].token_ids
        )
        stream = e.stream({"prompt_token_ids": [1, 2, 3]}, {"temperature": 0.0, "max_tokens": 9})
        next(stream)
        e.set_expert_selection("top_j:j=1,phase=all")
        got = calibrate(e, sequences_of("many"))
        e.set_expert_selection(None)
        *_, output = stream
    assert np.array_equal(got.similarity, expected.similarity) and np.array_equal(got.usage, expected.usage)
    assert output.outputs[0].token_ids == alone


def test_steps_of_few_rows(folder: Any) -> None:
    """A sequence that takes several steps, and the sums of two halves of the text."""
    [long] = sequences_of("plain", (150,))
    with engine(folder("plain")) as one, engine(folder("plain"), max_num_batched_tokens=13, max_num_seqs=8) as many:
        whole = one._core.compare_experts(long)
        pieces = many._core.compare_experts(long)
        assert np.array_equal(whole["usage"], pieces["usage"])
        np.testing.assert_allclose(whole["sums"], pieces["sums"], rtol=1e-12)
        head = one._core.compare_experts(long[:70])
        assert (head["sums"] <= whole["sums"]).all() and (head["usage"] <= whole["usage"]).all()


def test_identical_experts_have_similarity_one(folder: Any, tmp_path: Path) -> None:
    path = tmp_path / "twins"
    shutil.copytree(folder("plain"), path)
    [file] = path.glob("*.safetensors")
    tensors = load_file(file)
    for name in list(tensors):
        if ".experts.5." in name:
            tensors[name] = tensors[name.replace(".experts.5.", ".experts.2.")]
    save_file(tensors, file, metadata={"format": "pt"})
    for metric in ("frobenius", "cosine"):
        with engine(str(path)) as e:
            got = calibrate(e, sequences_of("plain"), metric=metric)  # type: ignore[arg-type]
        assert (np.abs(got.similarity[:, 2, 5] - 1) < 1e-6).all() and (got.similarity[:, 2, 3] < 0.99).all()
        table = got.alias(7)
        assert all(sorted(set(row.tolist())) in ([0, 1, 2, 3, 4, 6, 7], [0, 1, 3, 4, 5, 6, 7]) for row in table)
        assert (table[:, 2] == table[:, 5]).all()


# Stand-ins


def made_up(similarity: list[list[float]], usage: list[int]) -> Calibration:
    matrix = np.array(similarity, np.float32)
    return Calibration("frobenius", 1, np.maximum(matrix, matrix.T)[None], np.array([usage]))


def test_alias_by_hand() -> None:
    """0-1 (0.9) merge into 1; 1 has their use now, so that 1-2 (0.8) merge into 1 although 2 alone was used more than 1."""
    similarity = [[1, 0.9, 0.1, 0.2], [0, 1, 0.8, 0.3], [0, 0, 1, 0.7], [0, 0, 0, 1]]
    calibration = made_up(similarity, [5, 6, 9, 1])
    tables = [calibration.alias(n)[0].tolist() for n in (4, 3, 2, 1)]
    assert tables == [[0, 1, 2, 3], [1, 1, 2, 3], [1, 1, 1, 3], [1, 1, 1, 1]]


def test_alias_ties() -> None:
    """The lowest pair first, and of equally used experts the lower one stays."""
    calibration = made_up(np.ones((4, 4)).tolist(), [3, 3, 3, 3])
    assert [calibration.alias(n)[0].tolist() for n in (3, 2, 1)] == [[0, 0, 2, 3], [0, 0, 0, 3], [0, 0, 0, 0]]


def test_alias_properties() -> None:
    rng = np.random.default_rng(4)
    similarity = rng.random((3, 11, 11)).astype(np.float32)
    calibration = Calibration("frobenius", 1, similarity + similarity.transpose(0, 2, 1), rng.integers(0, 50, (3, 11)))
    before = None
    for left in range(11, 0, -1):
        table = calibration.alias(left)
        for row in table:
            assert len(set(row.tolist())) == left and (row[row] == row).all()
        if before is not None:  # after one merge more, experts that were merged still are
            assert all((table[i][before[i]] == table[i]).all() for i in range(3))
        before = table
    for wrong in (0, 12):
        with pytest.raises(ValidationError, match=r"1\.\.11"):
            calibration.alias(wrong)


# Files


def test_tensor_file(tmp_path: Path) -> None:
    """Read back by the safetensors package; strided arrays, an empty one, odd sizes."""
    file = tmp_path / "t.safetensors"
    tensors = {
        "a": np.arange(15, dtype=np.int32).reshape(3, 5).T,
        "b": np.zeros((0, 4), np.float32),
        "ccc": np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32),
    }
    for metadata in (None, {"x": "\u00e9 \n"}, {"x": "1"}, {"x": "12"}, {"x": "123"}):
        write_tensors(file, tensors, metadata)
        read = load_file(file)
        assert set(read) == set(tensors)
        assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0  # tensors begin aligned
        for name, array in tensors.items():
            assert read[name].dtype == array.dtype and np.array_equal(read[name], array)
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
    with pytest.raises(KeyError):
        write_tensors(file, {"a": np.zeros(3)})


def test_the_engine_runs_with_the_tables(folder: Any, tmp_path: Path) -> None:
    """sere and alias from one file; what they do is what the tables say."""
    path, file = folder("many"), tmp_path / "tables.safetensors"
    with engine(path) as e:
        calibration = calibrate(e, sequences_of("many"))
        calibration.save(file, num_experts=20)
        saved = load_file(file)
        assert np.array_equal(saved["similarity"], calibration.similarity) and saved["similarity"].dtype == np.float32
        assert np.array_equal(saved["alias"], calibration.alias(20)) and saved["alias"].dtype == np.int32
    prompts = [{"prompt_token_ids": ids} for ids in sequences_of("many", (3, 4, 5, 6, 7, 8))]
    params = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
    with engine(path, enable_return_routed_experts=True) as e:
        e.generate(prompts, params)
        before = e.expert_stats()
        for policy in (f"sere:s=2,file={file}", f"alias:file={file}"):
            e.set_expert_selection(policy)
            e.reset_stats()
            outputs = e.generate(prompts, params)
            assert e.expert_stats().active < before.active
            decoded = np.concatenate([out.outputs[0].routed_experts[len(out.prompt_token_ids) :] for out in outputs])
        left = [set(row.tolist()) for row in saved["alias"]]
        assert all(set(decoded[:, layer].ravel().tolist()) - {-1} <= left[layer] for layer in range(2))
        e.set_expert_selection(None)


# Errors and the command


def test_errors(folder: Any) -> None:
    with engine(folder("plain")) as e:
        for nothing in ([], [[], []]):
            with pytest.raises(ValidationError, match="at least one token"):
                calibrate(e, nothing)
        with pytest.raises(ValidationError, match="token_ids"):
            calibrate(e, [[1, 5000]])
        with pytest.raises(ValidationError, match="metric"):
            calibrate(e, [[1]], metric="manhattan")  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="max_model_len"):
            calibrate(e, [[1] * 257])
    with engine(folder("dense")) as e, pytest.raises(UnsupportedModelError, match="no experts"):
        calibrate(e, [[1, 2]])


def test_text_sequences(nano: Engine) -> None:
    text = " ".join(str(n) for n in range(300))
    ids = nano.encode(text)
    pieces = text_sequences(nano, text, 50)
    assert [token for piece in pieces for token in piece] == ids[: len(ids) // 50 * 50] and {
        len(p) for p in pieces
    } == {50}
    few = text_sequences(nano, text, 50, 3)
    assert len(few) == 3 and few[0] == pieces[0] and few[2] != pieces[2] and all(p in pieces for p in few)
    assert text_sequences(nano, "a b", 50) == [nano.encode("a b")]


@pytest.mark.parametrize("source", ["text", "tasks"])
def test_calibrate_command(nano_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    file, text = tmp_path / "tables.safetensors", tmp_path / "text.txt"
    text.write_text("Q: 12 times 22 = ?\nA: 264\n" * 30)
    argv = ["--text", str(text), "--length", "40"] if source == "text" else ["--tasks", str(TASKS)]
    assert main(["calibrate", *argv, "--out", str(file), "--sequences", "3", "--alias", "9", "--num-threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "tokens, frobenius" in lines[0] and len(lines) == 3 + 8
    tables = load_file(file)
    assert tables["similarity"].shape == (8, 32, 32) and tables["alias"].shape == (8, 32)
    assert all(len(set(row.tolist())) == 9 for row in tables["alias"])
    with Engine(nano_path, expert_selection=f"sere:s=1,file={file}", max_num_seqs=4) as e:
        e.generate(["Q: 1 plus 2 = ?\nA:"] * 4, {"max_tokens": 5, "temperature": 0.7, "ignore_eos": True})
        stats = e.expert_stats()
        assert stats.active < stats.union_before


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--tasks", "/no/such/folder", "--out", "x"], "/no/such/folder"),
        (["--text", "/no/such/text", "--out", "x"], "/no/such/text"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], text: str) -> None:
    assert main(["calibrate", *argv]) == 1
    err = capsys.readouterr().err
    assert err.startswith("lynx-rt: error: ") and err.count("\n") == 1 and text in err
