"""What a user may pass as a model: folders, files, names on the Hub; and the answer to each mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, serve

import lynx_rt
from lynx_rt import CheckpointError, Engine, LynxError, ModelNotFoundError, UnsupportedModelError, ValidationError
from lynx_rt.engine import hub
from lynx_rt.engine.model_path import resolve

SUM = "Q: 12 times 22 = ?\nA:"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 43231040\n"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache of the Hub, and no way to it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write(folder: Path, **files: bytes) -> Path:
    """A folder of these files; in names, "__" stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("files", "kind", "says"),
    [
        (
            {"m-Q4_K_M__gguf": b"", "m-Q8_0-00001-of-00002__gguf": b"", "m-Q8_0-00002-of-00002__gguf": b""},
            ValidationError,
            ["several models in GGUF; give one of them: m-Q4_K_M.gguf, m-Q8_0-00001-of-00002.gguf"],
        ),
        (
            {"config__json": b"{}", "pytorch_model__bin": b"x"},
            UnsupportedModelError,
            ["PyTorch's format only (pytorch_model.bin)", "convert it to safetensors", "save_pretrained"],
        ),
        (
            {"adapter_config__json": b'{"base_model_name_or_path": "org/base"}', "adapter_model__safetensors": b"x"},
            UnsupportedModelError,
            ["adapter (LoRA) of org/base, not a model", "merge_and_unload"],
        ),
        (
            {"config__json": b"{}", "model__safetensors": LFS},
            CheckpointError,
            ["model.safetensors is a pointer of git-lfs", "git lfs pull"],
        ),
        (
            {"config__json": b"{}", "model__safetensors": b"x" * 2000, "tokenizer__json": LFS},
            CheckpointError,
            ["tokenizer.json is a pointer of git-lfs"],
        ),
        ({}, ModelNotFoundError, ["has no config.json", "holds config.json, *.safetensors"]),
        ({"model__safetensors": b"x"}, ModelNotFoundError, ["has no config.json"]),
        ({"config__json": b"{}"}, ModelNotFoundError, ["has no weights: neither model.safetensors nor"]),
        (
            {"config__json": b"{}", "consolidated__safetensors": b"x"},
            ModelNotFoundError,
            ["has no weights", "only consolidated.safetensors"],
        ),
    ],
)
def test_folders(tmp_path: Path, files: dict[str, bytes], kind: type[LynxError], says: list[str]) -> None:
    folder = write(tmp_path / "model", **files)
    with pytest.raises(kind) as caught:
        Engine(str(folder))
    assert all(piece in str(caught.value) for piece in [str(folder), *says]), str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.field in ("model", *map(str, folder.iterdir()))


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("model.gguf", CheckpointError, "truncated: the magic number takes 4 bytes"),
        ("pytorch_model.bin", UnsupportedModelError, "convert it to safetensors"),
        ("model.safetensors", ValidationError, "give '{folder}' instead"),
        ("config.json", ValidationError, "give '{folder}' instead"),
    ],
)
def test_files(tmp_path: Path, name: str, kind: type[LynxError], says: str) -> None:
    write(tmp_path / "model", config__json=b"{}")
    file = tmp_path / "model" / name
    file.write_bytes(b"x")
    with pytest.raises(kind) as caught:
        Engine(file)
    assert str(file) in str(caught.value) and says.format(folder=file.parent) in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path, nano_path: str) -> None:
    (tmp_path / "lynx-nano").symlink_to(nano_path)
    for name, says in [
        ("lynx-nan", f"did you mean {str(tmp_path / 'lynx-nano')!r}?"),
        ("no/such/folder", f"{tmp_path / 'no'} does not exist"),
    ]:
        with pytest.raises(ModelNotFoundError) as caught:
            Engine(tmp_path / name)
        assert says in str(caught.value)
    with pytest.raises(ModelNotFoundError, match=f"but '{tmp_path}/lynx-nano' is one"):
        Engine(tmp_path)
    for bad in (5, "", "a\0b", "x" * 5000):
        with pytest.raises(LynxError):
            Engine(bad)  # type: ignore[arg-type]
    assert resolve(nano_path) == Path(nano_path)
    with pytest.raises(ValidationError, match="is a path"):
        resolve(nano_path, revision="main")


def test_a_dummy_needs_no_weights(tmp_path: Path, nano_path: str) -> None:
    folder = write(tmp_path / "model", config__json=(Path(nano_path) / "config.json").read_bytes())
    assert resolve(folder, "dummy") == folder
    with Engine(folder, load_format="dummy", skip_tokenizer_init=True) as engine:
        assert engine.model_config["num_experts"] == 32


def test_names_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Qwen/Qwen3-30B-A3B", "a/b", "org_1/x.y"):
        assert hub.is_id(name)
    for name in (
        "gpt2",
        "a/b/c",
        "/a/b",
        "./a",
        "../b",
        "a/..",
        "Q: 1+1",
        "a--b/c",
        "a/",
        "a/b.",
        "~/x",
        "a/b c",
        "x" * 96 + "/y",
    ):
        assert not hub.is_id(name)
    with pytest.raises(ModelNotFoundError, match=r"'org/name' is not a folder here.*HF_HUB_OFFLINE forbids"):
        Engine("org/name")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as where it is not installed
    with pytest.raises(ModelNotFoundError, match=r"pip install 'lynx_rt\[hub\]'.*`hf download org/name`"):
        Engine("org/name")
    with pytest.raises(ModelNotFoundError, match="`hf download org/name --revision v2`"):
        resolve("org/name", revision="v2")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XYZ", "/x")
    for name, value, folder in [
        ("HF_HOME", "/home/hf", "/home/hf/hub"),
        ("HUGGINGFACE_HUB_CACHE", "/old", "/old"),
        ("HF_HUB_CACHE", "$XYZ/cache", "/x/cache"),
    ]:
        monkeypatch.setenv(name, value)
        assert hub.cache_folder() == Path(folder)
    for name in ("HF_HOME", "HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert hub.cache_folder() == Path("/xdg/huggingface/hub")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub.cache_folder() == Path.home() / ".cache/huggingface/hub"


def cache(name: str, source: str, *, without: str = "") -> Path:
    """A model in the Hub's cache, as huggingface_hub lays it out."""
    folder = hub.cache_folder() / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for file in Path(source).iterdir():
        if file.name != without:
            (snapshot / file.name).symlink_to(file)
    return snapshot


def test_a_cached_model_is_used_offline(monkeypatch: pytest.MonkeyPatch, nano_path: str) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    snapshot = cache("org/nano", nano_path)
    with Engine("org/nano") as engine:
        assert engine.generate(SUM)[0].text == " 264"
    assert resolve("org/nano", revision=COMMIT) == resolve("org/nano") == snapshot
    with pytest.raises(ModelNotFoundError, match="at revision 'v2'"):
        resolve("org/nano", revision="v2")
    with pytest.raises(ModelNotFoundError, match=f"{snapshot}' is one"):
        Engine(snapshot.parents[1])
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"only a part of it is in the .*: model\.safetensors is missing"):
        Engine("org/nano")
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(ModelNotFoundError, match=r"model-1\.safetensors is missing"):
        Engine("org/nano")


@pytest.fixture
def fake(nano_path: str) -> Iterator[FakeHub]:
    nano = {file.name: file.read_bytes() for file in Path(nano_path).iterdir()}
    more = {"pytorch_model.bin": b"x", "original/consolidated.safetensors": b"y", "consolidated.safetensors": b"z"}
    pickled = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    models = {
        "org/nano": nano | more,
        "org/gguf": {"m.gguf": b""},
        "org/bin": pickled,
        "org/lora": {"adapter_config.json": b""},
    }
    refused = {"org/gated": (403, "GatedRepo"), "org/gated401": (401, "GatedRepo"), "org/secret": (403, "")}
    with serve(FakeHub(models, refused)) as served:
        yield served


def fetch(fake: FakeHub, home: Path, calls: list[tuple[str, str | None]], setup: str = "") -> tuple[list[str], str]:
    """The answers of find_or_download() in another process, and its standard error."""
    code = f"import lynx_rt.engine.hub as hub, json, errno\n{setup}\n" + (
        f"for name, revision in {calls!r}:\n"
        "    try: answer = str(hub.find_or_download(name, revision))\n"
        "    except Exception as error: answer = f'{type(error).__name__}: {error}'\n"
        "    print(json.dumps(answer))\n"
    )
    env = {
        **os.environ,
        "HF_ENDPOINT": fake.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_download(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    names = ["gated", "gated401", "secret", "none", "gguf", "bin", "lora"]
    calls: list[tuple[str, str | None]] = [(f"org/{name}", None) for name in names]
    calls += [("org/nano", "v9"), ("org/nano", None), ("org/nano", None)]
    answers, err = fetch(fake, tmp_path / "home", calls)
    expected = [
        "ModelNotFoundError: org/gated is gated: accept its terms at ",
        "ModelNotFoundError: org/gated401 is gated: accept its terms at ",
        f"ModelNotFoundError: {fake.url} refuses org/secret (403): `hf auth login`",
        f"and not on {fake.url}; if it is private, `hf auth login`",
        "UnsupportedModelError: org/gguf holds GGUF files",
        "UnsupportedModelError: org/bin holds weights in PyTorch's format only",
        "UnsupportedModelError: org/lora is an adapter (LoRA)",
        "ModelNotFoundError: org/nano has no revision 'v9'",
        str(tmp_path / "home" / "hub" / "models--org--nano" / "snapshots" / COMMIT),
        str(tmp_path / "home" / "hub" / "models--org--nano" / "snapshots" / COMMIT),
    ]
    for answer, part in zip(answers, expected, strict=True):
        assert part in answer
    assert f"downloading org/nano to {tmp_path / 'home' / 'hub'}\n" in err
    wanted = {file.name for file in Path(lynx_rt.shipped_model()).iterdir()} - {"README.md"}
    assert sorted(fake.served) == sorted(wanted)  # each once, and nothing else
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with Engine("org/nano") as engine:  # offline now
        assert engine.generate(SUM)[0].text == " 264"
    # A download that broke off goes on.
    (Path(answers[-1]) / "model.safetensors").resolve().unlink()
    fake.served.clear()
    again, _ = fetch(fake, tmp_path / "home", [("org/nano", None)])
    assert again == answers[-1:] and fake.served == ["model.safetensors"]


def test_download_fails(fake: FakeHub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    full = (
        "import huggingface_hub\n"
        "def fail(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "huggingface_hub.snapshot_download = fail"
    )
    [answer], _ = fetch(fake, tmp_path, [("org/nano", None)], full)
    assert answer.startswith(f"LynxError: no space for org/nano in {tmp_path / 'hub'}; HF_HOME names another folder")
    fake.url = "http://127.0.0.1:9"  # nobody listens there
    [answer], _ = fetch(fake, tmp_path, [("org/nano", None)])
    assert "ModelNotFoundError: 'org/nano' is not a folder here" in answer
    assert "cannot be downloaded from http://127.0.0.1:9: " in answer
