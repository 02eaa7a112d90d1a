"""Images in prompts, from what callers pass to what the compiled engine is given (a fake one, see tests/fake_vision.py)."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_vision import IMAGE_TOKEN, PLACEHOLDER, TEMPLATE, pictured_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lynx_rt import Engine, ValidationError
from lynx_rt.vision.preprocess import ImageProcessorConfig, num_image_tokens, patches_of

ONE = {"temperature": 0, "max_tokens": 1}
CONFIG = ImageProcessorConfig()
RANDOM = np.random.default_rng(9)


def noise(height: int = 256, width: int = 256) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def data_url(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


PIXELS = noise(300, 270)
TOKENS = num_image_tokens(300, 270, CONFIG)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with pictured_engine() as made:
        yield made


def given_images(engine: Engine) -> list[dict[str, Any]]:
    """The images of the last request."""
    return engine._core.images[-1]  # type: ignore[attr-defined]


# --- beside a text


@pytest.mark.parametrize(
    "image",
    [
        PIXELS,
        Image.fromarray(PIXELS),
        png(PIXELS),
        bytearray(png(PIXELS)),
        data_url(PIXELS),
        (PIXELS,),
        [data_url(PIXELS)],
    ],
    ids=["array", "pillow", "bytes", "bytearray", "data URL", "tuple", "list"],
)
def test_one_image_in_every_form(engine: Engine, image: Any) -> None:
    prompt = {"prompt": f"Q: {PLACEHOLDER} what?\nA:", "multi_modal_data": {"image": image}}
    (output,) = engine.generate(prompt, ONE)
    assert output.prompt_token_ids.count(IMAGE_TOKEN) == TOKENS
    [found] = given_images(engine)
    expected = patches_of(PIXELS, CONFIG)
    assert output.prompt_token_ids.index(IMAGE_TOKEN) == found["position"]
    assert (found["grid_height"], found["grid_width"]) == (expected.grid_height, expected.grid_width)
    assert np.array_equal(found["patches"], expected.rows) and found["digest"] == expected.digest


def test_every_method_takes_images(engine: Engine) -> None:
    prompt = {"prompt": f"a{PLACEHOLDER}", "multi_modal_data": {"image": PIXELS}}

    async def last() -> Any:
        return [output async for output in engine.agenerate(prompt, ONE)][-1]

    for ids in (
        list(engine.stream(prompt, ONE))[-1].prompt_token_ids,
        asyncio.run(last()).prompt_token_ids,
    ):
        assert ids.count(IMAGE_TOKEN) == TOKENS and len(given_images(engine)) == 1
    engine.add_request(prompt, ONE)
    while engine.has_unfinished_requests():
        outputs = engine.step()
    assert outputs[-1].prompt_token_ids.count(IMAGE_TOKEN) == TOKENS
    before = len(engine._core.images)  # type: ignore[attr-defined]
    plain, pictured = engine.score([{"prompt": "a"}, prompt], [" b", " b"])
    assert plain < 0 and pictured < 0 and len(engine._core.images) == before + 1  # type: ignore[attr-defined]
    engine.generate(prompt, ONE | {"n": 3, "temperature": 1})
    kept = engine._core.images[before + 1 :]  # type: ignore[attr-defined]
    assert len(kept) == 3 and len({id(images[0]["patches"]) for images in kept}) == 1  # the same array for each answer


@given(st.data())
@settings(max_examples=40)
def test_placeholders_become_as_many_tokens_as_the_images_take(engine: Engine, data: st.DataObject) -> None:
    """Any mixture of ids and images, as ids and in several prompts at once."""
    prompts, wanted = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        ids: list[int] = []
        images: list[Any] = []
        expected: list[int] = []
        positions = []
        for is_image in data.draw(st.lists(st.booleans(), min_size=1, max_size=6)):
            if is_image and len(images) < 2:
                size = (data.draw(st.integers(2, 400)), data.draw(st.integers(200, 400)))
                ids.append(IMAGE_TOKEN)
                images.append(np.full((*size, 3), len(images) + 7, np.uint8))
                positions.append(len(expected))
                expected += [IMAGE_TOKEN] * num_image_tokens(*size, CONFIG)
            else:
                token = data.draw(st.integers(1, 4095))
                ids.append(token)
                expected.append(token)
        prompts.append({"prompt_token_ids": ids, "multi_modal_data": {"image": images}})
        wanted.append((expected, positions))
    before = len(engine._core.images)  # type: ignore[attr-defined]
    outputs = engine.generate(prompts, ONE | {"detokenize": False, "ignore_eos": True}, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [expected for expected, _ in wanted]
    found = [[image["position"] for image in images] for images in engine._core.images[before:]]  # type: ignore[attr-defined]
    assert found == [positions for _, positions in wanted if positions]


def test_max_pixels_of_engine_and_prompt(engine: Engine) -> None:
    big = noise(600, 500)
    prompt = {"prompt": PLACEHOLDER, "multi_modal_data": {"image": big}}
    with pictured_engine(mm_processor_kwargs={"max_pixels": 100_000}) as small:
        for made, kwargs, limit in (
            (engine, None, CONFIG.max_pixels),
            (engine, {"max_pixels": 80_000}, 80_000),
            (small, None, 100_000),
            (small, {"max_pixels": 66_000}, 66_000),
            (small, {"max_pixels": 10**9}, 100_000),  # a prompt cannot have more than the engine allows
            (small, {}, 100_000),
        ):
            (output,) = made.generate({**prompt, "mm_processor_kwargs": kwargs}, ONE)
            assert output.prompt_token_ids.count(IMAGE_TOKEN) == num_image_tokens(600, 500, CONFIG.limited(limit))
    for kwargs, fault in (
        ({"max_pixels": 100}, "at least 1024"),
        ({"max_pixels": 1.5}, "positive integer, got 1.5"),
        ({"max_pixels": True}, "got True"),
        ({"size": {}}, "may have 'max_pixels', got 'size'"),
        (3, "must be a dict"),
    ):
        with pytest.raises(ValidationError, match=fault) as caught:
            engine.generate({**prompt, "mm_processor_kwargs": kwargs}, ONE)
        assert caught.value.field == "mm_processor_kwargs"


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ({"prompt": "a"}, None),
        ({"prompt": PLACEHOLDER}, "got 1 for 0 images"),
        ({"prompt": "a", "multi_modal_data": {"image": PIXELS}}, "got 0 for 1 images"),
        ({"prompt": PLACEHOLDER * 3, "multi_modal_data": {"image": [PIXELS] * 2}}, "got 3 for 2 images"),
        ({"prompt": PLACEHOLDER, "multi_modal_data": {"video": PIXELS}}, "'video', and this engine reads images only"),
        ({"prompt": PLACEHOLDER, "multi_modal_data": [PIXELS]}, "must be a dict such as"),
        (
            {"prompt": PLACEHOLDER, "multi_modal_data": {"image": {"image_embeds": 1}}},
            "must be an image or a list of them",
        ),
        ({"prompt": PLACEHOLDER, "multi_modal_data": {"image": "picture.png"}}, "expected a URL with data: or file:"),
        ({"prompt": PLACEHOLDER, "multi_modal_data": {"image": "http://a/b.png"}}, "not fetched from the network"),
        (
            {"prompt": PLACEHOLDER, "multi_modal_data": {"image": "file:///a.png"}},
            "refused without allowed_local_media_path",
        ),
        (
            {"prompt": PLACEHOLDER, "multi_modal_data": {"image": 5}},
            r"\['image'\]\[0\]: expected an image of Pillow, .* got 5",
        ),
        ({"prompt": PLACEHOLDER, "multi_modal_data": {"image": [None]}}, "got None"),
        ({"prompt": PLACEHOLDER, "multi_modal_data": {"image": b"GIF89a"}}, "not an image of PNG"),
        (
            {"prompt": PLACEHOLDER, "multi_modal_data": {"image": png(PIXELS)[:3000]}},
            "the PNG file is damaged or cut off",
        ),
        ({"prompt": PLACEHOLDER, "multi_modal_data": {"image": PIXELS[None]}}, r"got uint8 \[1, 300, 270, 3\]"),
        ({"prompt": PLACEHOLDER, "multi_modal_data": {"image": noise(1, 300)}}, "ratio of at most 200"),
        (
            {"messages": [{"role": "user", "content": "x"}], "multi_modal_data": {"image": PIXELS}},
            "may have the keys 'messages'",
        ),
        (
            {"prompt": PLACEHOLDER, "multi_modal_data": {"image": PIXELS}, "multi_modal_uuids": {"image": ["a", "b"]}},
            "of the 1 images",
        ),
        ({"prompt": PLACEHOLDER, "multi_modal_data": {"image": PIXELS}, "multi_modal_uuids": 4}, "got 4"),
    ],
)
def test_bad_images_are_named_and_nothing_is_queued(engine: Engine, prompt: dict[str, Any], fault: str | None) -> None:
    if fault is None:
        engine.generate(prompt, ONE)
        return
    for prompts, label in ((prompt, "prompt"), (["a", prompt], "prompts[1]")):
        with pytest.raises(ValidationError, match=fault) as caught:
            engine.generate(prompts, ONE)
        assert str(caught.value).startswith(f"{label}: "), caught.value
    assert engine.stats().num_running == engine.stats().num_waiting == 0


def test_names_of_images_change_nothing(engine: Engine) -> None:
    prompt = {"prompt": PLACEHOLDER, "multi_modal_data": {"image": PIXELS}}
    digests = []
    for uuids in (None, {}, {"image": ["a"]}, {"image": "b"}, {"image": [None]}):
        engine.generate({**prompt, "multi_modal_uuids": uuids}, ONE)
        digests.append(given_images(engine)[0]["digest"])
    assert len(set(digests)) == 1


def test_a_salt_keeps_images_apart(engine: Engine) -> None:
    """Nobody learns from the time of an answer that a client with another salt, or of another group, has sent an image."""
    prompt = {"prompt": PLACEHOLDER, "multi_modal_data": {"image": PIXELS}}
    digests = []
    for more in ({}, {}, {"cache_salt": "a"}, {"cache_salt": "a"}, {"cache_salt": "b"}, {"isolation_group": "a"}):
        engine.generate(prompt, ONE | more)
        digests.append(given_images(engine)[0]["digest"])
    assert digests[0] == digests[1] and digests[2] == digests[3] and len(set(digests)) == 4


def test_a_prompt_that_is_too_long_is_refused_before_its_images_are_decoded(engine: Engine) -> None:
    """The file has 64 million pixels and is cut off: decoding it would say so."""
    file = io.BytesIO()
    Image.new("1", (8000, 8000)).save(file, "PNG")
    prompt = {"prompt": PLACEHOLDER, "multi_modal_data": {"image": file.getvalue()[:200]}}
    with pytest.raises(
        ValidationError, match=r"prompt has 1\d{4} tokens, but prompt and output together may have 1024"
    ):
        engine.generate(prompt, ONE)


def test_limit_mm_per_prompt() -> None:
    with pictured_engine(limit_mm_per_prompt={"image": 2}) as engine:
        small = noise(32, 32)
        for count in (1, 2, 3):
            prompt = {"prompt": PLACEHOLDER * count, "multi_modal_data": {"image": [small] * count}}
            chat = [{"role": "user", "content": [{"type": "image", "image": small}] * count}]
            if count < 3:
                engine.generate(prompt, ONE)
                engine.chat(chat, ONE)
                continue
            for call, value, field in (
                (engine.generate, prompt, "multi_modal_data"),
                (engine.chat, chat, "messages"),
            ):
                with pytest.raises(ValidationError, match=r"at most 2 images .*limit_mm_per_prompt.*, got 3") as caught:
                    call(value, ONE)
                assert caught.value.field == field


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"limit_mm_per_prompt": 3}, "limit_mm_per_prompt must be a dict such as {'image': 4}, got 3"),
        ({"limit_mm_per_prompt": {"image": -1}}, "must be an integer of at least 0, got -1"),
        ({"limit_mm_per_prompt": {"images": 1}}, "may have 'image', got 'images'"),
        ({"mm_processor_kwargs": {"min_pixels": 1}}, "mm_processor_kwargs may have 'max_pixels', got 'min_pixels'"),
        ({"mm_processor_kwargs": {"max_pixels": 0}}, "must be a positive integer, got 0"),
        ({"mm_processor_kwargs": {"max_pixels": 5}}, "at least 1024, got 5"),
        ({"allowed_local_media_path": "/does/not/exist"}, "allowed_local_media_path must be a folder, got '/does"),
        ({"allowed_local_media_path": 5}, "allowed_local_media_path must be a path or None, got 5"),
    ],
)
def test_bad_options(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError) as caught, pictured_engine(**options):
        pass
    assert fault in str(caught.value) and caught.value.field in (*options, "max_pixels")


def test_a_processor_of_another_model_is_refused(tmp_path: Path) -> None:
    from lynx_rt import CheckpointError
    from lynx_rt.engine.images import ImageInputs

    info = {"image_token_id": 5, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    assert ImageInputs(tmp_path, info, None, None, None).reads_images  # without a file, the model's sizes count
    (tmp_path / "preprocessor_config.json").write_text('{"min_pixels": 5}')
    assert ImageInputs(tmp_path, info, None, None, None).reads_images
    (tmp_path / "preprocessor_config.json").write_text('{"patch_size": 16}')
    with pytest.raises(CheckpointError, match="patch_size is 16, and the model's is 14"):
        ImageInputs(tmp_path, info, None, None, None)
    assert not ImageInputs(tmp_path, {"image_token_id": -1}, None, None, None).reads_images
    assert not ImageInputs(tmp_path, {}, None, None, None).reads_images


# --- in chats


@dataclasses.dataclass
class Part:
    type: str
    image_url: Any


@dataclasses.dataclass
class Message:
    role: str
    content: Any


URL = data_url(PIXELS)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}, "uuid": "x"},
        {"type": "image_url", "image_url": URL},
        {"image_url": URL},
        {"type": "input_image", "image_url": URL},
        {"type": "image", "image": Image.fromarray(PIXELS)},
        {"type": "image", "image": PIXELS},
        {"type": "image", "image": URL},
        {"type": "image", "url": URL},
        {"type": "image_pil", "image_pil": Image.fromarray(PIXELS)},
        {"type": "image", "image": png(PIXELS)},
        Part("image_url", {"url": URL}),
    ],
)
def test_parts_of_every_client(engine: Engine, part: Any) -> None:
    text = {"type": "text", "text": "what?"}
    (output,) = engine.chat([{"role": "user", "content": [part, text]}], ONE)
    if isinstance(part, Part) or isinstance(
        next(reversed(part.values())), (str, dict)
    ):  # a client's object may hold it
        assert engine.chat([Message("user", [part, text])], ONE)[0].prompt_token_ids == output.prompt_token_ids
    assert output.prompt == f"<|bos|>Q: {PLACEHOLDER}what?\nA:"
    ids = engine.encode("Q: ", False), [IMAGE_TOKEN] * TOKENS, engine.encode("what?\nA:", False)
    assert output.prompt_token_ids == [1, *ids[0], *ids[1], *ids[2]]
    assert given_images(engine)[0]["digest"] == patches_of(PIXELS, CONFIG).digest


def test_images_keep_the_order_of_the_conversation(engine: Engine) -> None:
    colours = [np.full((64, 64, 3), grey, np.uint8) for grey in (1, 2, 3)]
    parts = [{"type": "image", "image": colour} for colour in colours]
    chat = [
        {"role": "user", "content": [parts[0], {"type": "text", "text": "and"}, parts[1]]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": ["this?", parts[2]]},
    ]
    engine.chat(chat, ONE)
    assert [image["digest"] for image in given_images(engine)] == [
        patches_of(colour, CONFIG).digest for colour in colours
    ]
    assert [image["position"] for image in given_images(engine)] == sorted(
        image["position"] for image in given_images(engine)
    )
    rendered = engine.render_chat(chat)
    assert rendered["prompt_token_ids"].count(IMAGE_TOKEN) == rendered["prompt"].count(PLACEHOLDER) == 3
    (by_chat,) = engine.chat(chat, ONE)
    (by_prompt,) = engine.generate(rendered, ONE)
    assert by_chat.prompt_token_ids == by_prompt.prompt_token_ids and len(given_images(engine)) == 3
    first, second = engine.chat([chat, chat[:1]], ONE, use_tqdm=False)
    assert first.prompt_token_ids == by_chat.prompt_token_ids and second.prompt_token_ids.count(IMAGE_TOKEN) == 128


def test_max_pixels_of_a_rendered_chat(engine: Engine) -> None:
    prompt = {"messages": [{"role": "user", "content": [{"type": "image", "image": noise(400, 400)}]}]}
    (output,) = engine.generate({**prompt, "mm_processor_kwargs": {"max_pixels": 70_000}}, ONE)
    assert output.prompt_token_ids.count(IMAGE_TOKEN) == num_image_tokens(400, 400, CONFIG.limited(70_000))


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ({"type": "image_url"}, r"messages\[0\].content\[1\] is of type 'image_url' and must have 'image_url'"),
        ({"type": "image_url", "image_url": {}}, r"content\[1\].image_url.url must be a text, got None"),
        ({"type": "image_url", "image_url": {"url": 5}}, "url must be a text, got 5"),
        ({"type": "image_url", "image_url": 5}, "got 5"),
        ({"type": "image"}, "must have 'image'"),
        ({"type": "input_image", "file_id": "file-1"}, "files are not kept here: send the image"),
        (
            {"type": "image_embeds", "image_embeds": "x"},
            "type 'image_embeds', but this engine reads text and images only",
        ),
        (
            {"type": "video_url", "video_url": {"url": "x"}},
            "type 'video_url', but this engine reads text and images only",
        ),
        ({"type": "input_audio", "input_audio": {}}, "reads text and images only"),
        (
            {"type": "image_url", "image_url": "/etc/passwd"},
            r"content\[1\]: expected a URL with data: or file:, got '/etc",
        ),
        ({"type": "image_url", "image_url": "data:image/png;base64,!"}, "base64 of the data: URL is not valid"),
        ({"type": "image_url", "image_url": "data:image/png,abc"}, "expected data:image/TYPE;base64"),
        ({"type": "image_url", "image_url": "data:text/html;base64,abcd"}, "got the type 'text/html'"),
        ({"type": "image_url", "image_url": "data:image/png;base64,abcd"}, "not an image of PNG"),
        ({"type": "text", "text": PLACEHOLDER}, "got 1 for 0 images"),
    ],
)
def test_bad_parts(engine: Engine, part: dict[str, Any], fault: str) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]
    with pytest.raises(ValidationError, match=fault) as caught:
        engine.chat(chat, ONE)
    assert caught.value.field in ("messages", "prompts")
    with pytest.raises(ValidationError, match=r"^(conversations|prompts)\[1\]"):
        engine.chat([[{"role": "user", "content": "x"}], chat], ONE)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([URL, URL[:300], "data:", "file:///x", "http://x", "", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["url", "type", "image", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
KINDS = ["image", "image_url", "input_image", "image_pil", "text", "video", None, 5]
KEYS = ["image", "image_url", "image_pil", "url", "text", "source", "file_id", "path"]


@given(
    st.lists(
        st.fixed_dictionaries({"type": st.sampled_from(KINDS)}, optional=dict.fromkeys(KEYS, JSON)) | JSON, max_size=4
    )
)
@settings(max_examples=100)
def test_any_part_is_right_or_refused_by_name(engine: Engine, parts: list[Any]) -> None:
    try:
        rendered = engine.render_chat([{"role": "user", "content": parts}])
    except ValidationError as error:
        assert str(error) and len(str(error)) < 1000 and error.field
    else:
        images = rendered.get("multi_modal_data", {}).get("image", [])
        assert rendered["prompt_token_ids"].count(IMAGE_TOKEN) == len(images)


@given(JSON | st.dictionaries(st.sampled_from(["image", "video", "y"]), JSON, max_size=2), JSON, JSON)
@settings(max_examples=100)
def test_any_value_beside_a_text_is_right_or_refused_by_name(
    engine: Engine, data: Any, uuids: Any, kwargs: Any
) -> None:
    beside = {"multi_modal_data": data, "multi_modal_uuids": uuids, "mm_processor_kwargs": kwargs}
    try:
        (parsed,) = engine.inputs.parse({"prompt": f"a{PLACEHOLDER}", **beside})
    except ValidationError as error:
        assert str(error) and len(str(error)) < 1000 and error.field
    else:
        assert len(parsed.images) == 1


def test_templates_that_take_no_images(engine: Engine) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "image": PIXELS}]}]
    with pytest.raises(ValidationError, match="of type 'image', and this model's chat template takes text only"):
        engine.chat(chat, ONE, chat_template="{% for m in messages %}{{ m.content + '' }}{% endfor %}")
    silent = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    with pytest.raises(ValidationError, match="got 0 for 1 images"):
        engine.chat(chat, ONE, chat_template=silent)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": URL},
        {"type": "image", "image": PIXELS},
        {"type": "image"},
        Part("image_url", URL),
    ],
)
def test_a_model_of_text_refuses_images(nano: Engine, part: Any) -> None:
    with pytest.raises(ValidationError, match=r"messages\[0\].content\[0\] is of type 'image.*reads text only"):
        nano.chat([{"role": "user", "content": [part]}], ONE, chat_template=TEMPLATE)
    with pytest.raises(ValidationError, match="'multi_modal_data' is not supported: this engine reads text only"):
        nano.generate({"prompt": "a", "multi_modal_data": {"image": PIXELS}}, ONE)


# --- files


def test_files_of_one_folder_alone(tmp_path: Path) -> None:
    folder, outside = tmp_path / "open", tmp_path / "closed"
    for place in (folder / "in side", outside):
        place.mkdir(parents=True)
        (place / "p.png").write_bytes(png(PIXELS))
    (folder / "link.png").symlink_to(outside / "p.png")
    (folder / "inner.png").symlink_to(folder / "in side" / "p.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (tmp_path / "open2").mkdir()
    (tmp_path / "open2" / "p.png").write_bytes(png(PIXELS))
    with pictured_engine(allowed_local_media_path=folder) as engine:

        def ask(url: str) -> None:
            engine.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}], ONE)

        for good in (
            f"file://{folder}/in%20side/p.png",
            f"file://localhost{folder}/inner.png",
            f"FILE://{folder}/./in%20side/p.png",
        ):
            ask(good)
            assert len(given_images(engine)) == 1
        for bad, fault in (
            (f"file://{outside}/p.png", "not in allowed_local_media_path"),
            (f"file://{outside}/absent.png", "not in allowed_local_media_path"),
            (f"file://{folder}/../closed/p.png", "not in allowed_local_media_path"),
            (f"file://{folder}/%2e%2e/closed/p.png", "not in allowed_local_media_path"),
            (f"file://{folder}2/p.png", "not in allowed_local_media_path"),
            (f"file://{folder}/link.png", "not in allowed_local_media_path"),
            (f"file://{folder}/absent.png", "absent.png cannot be read: No such file"),
            (f"file://{folder}/folder.png", "cannot be read: Is a directory"),
            (f"file://{folder}/pipe.png", "pipe.png is no file"),
            (f"file://{folder}/%00", "expected file:///PATH"),
            (f"file://elsewhere{folder}/inner.png", "expected file:///PATH"),
            ("file:relative.png", "expected file:///PATH"),
            ("file:///etc/passwd", "not in allowed_local_media_path"),
        ):
            with pytest.raises(ValidationError, match=fault):
                ask(bad)


def test_paths_of_the_program_itself(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "p.jpg").write_bytes(png(PIXELS, "JPEG"))
    prompt = {"prompt": PLACEHOLDER, "multi_modal_data": {"image": tmp_path / "p.jpg"}}
    engine.generate(prompt, ONE)
    assert given_images(engine)[0]["digest"] != patches_of(PIXELS, CONFIG).digest  # JPEG is not exact
    with pytest.raises(ValidationError, match=r"absent\.jpg cannot be read: No such file"):
        engine.generate({**prompt, "multi_modal_data": {"image": tmp_path / "absent.jpg"}}, ONE)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    from lynx_rt.vision.image import ImageLimits
    from lynx_rt.vision.sources import read_source

    (tmp_path / "p.png").write_bytes(bytes(101))
    url = "data:image/png;base64," + base64.b64encode(bytes(150)).decode()
    for value in (tmp_path / "p.png", url):
        with pytest.raises(ValidationError, match="bytes, expected at most 100"):
            read_source(value, "p", ImageLimits(max_bytes=100))


def test_data_urls_in_their_spellings() -> None:
    from lynx_rt.vision.sources import read_source

    source = random.Random(4)
    for size in (0, 1, 2, 3, 100):
        data = source.randbytes(size)
        text = base64.b64encode(data).decode()
        for url in (
            f"data:image/png;base64,{text}",
            f"DATA:IMAGE/PNG;BASE64,{text}",
            f"data:image/svg+xml;charset=utf-8;base64,{text}",
            f"data:image/png;base64,{text.replace('=', '%3D').replace('+', '%2B')}",
            f" data:image/png;base64,{text[:5]}\r\n{text[5:]} ",
        ):
            assert read_source(url, "x") == data


def test_requests_without_images_do_not_import_pillow() -> None:
    """In a process of its own, for an engine that reads images."""
    code = """
import sys
sys.path.insert(0, 'tests')
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'PIL':
            raise ImportError('refused')
sys.meta_path.insert(0, Refuse())
import fake_vision, lynx_rt
with fake_vision.pictured_engine() as engine:
    engine.generate('12 times 22 = ?', {'max_tokens': 1})
    engine.chat([{'role': 'user', 'content': [{'type': 'text', 'text': 'x'}]}], {'max_tokens': 1})
    assert 'PIL' not in sys.modules
    try:
        engine.generate({'prompt': '<|pad|>', 'multi_modal_data': {'image': b'x'}}, {'max_tokens': 1})
    except lynx_rt.ValidationError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert 'pip install "lynx_rt[vision]"' in done.stdout
