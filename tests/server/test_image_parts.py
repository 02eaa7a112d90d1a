"""Images in requests, by OpenAI's and Anthropic's clients, to a server whose engine takes images (tests/fake_vision.py)."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import numpy as np
import openai
import pytest
from fake_vision import PLACEHOLDER
from live_server import LiveServer
from pictured import Pictured, pictured_server
from PIL import Image

from lynx_rt.vision.preprocess import ImageProcessorConfig, num_image_tokens, patches_of

CONFIG = ImageProcessorConfig()
PIXELS = np.random.default_rng(3).integers(0, 256, (300, 280, 3), dtype=np.uint8)
TOKENS = num_image_tokens(300, 280, CONFIG)
DIGEST = patches_of(PIXELS, CONFIG).digest


def png(pixels: np.ndarray = PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


BASE64 = base64.b64encode(png()).decode()
URL = f"data:image/png;base64,{BASE64}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("open")
    (made / "p.png").write_bytes(png())
    return made


@pytest.fixture(scope="module")
def pictured(folder: Path) -> Iterator[Pictured]:
    options = {"allowed_local_media_path": folder, "limit_mm_per_prompt": {"image": 2}}
    with pictured_server(("pictures.example",), **options) as made:
        yield made


TEXT = {"type": "text", "text": "what is this?"}


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


# --- every API


@pytest.mark.parametrize("stream", [False, True])
def test_openai_chat(pictured: Pictured, stream: bool) -> None:
    with openai.OpenAI(base_url=pictured.url + "/v1", api_key="x", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": [TEXT, part(URL)]}]
        options: Any = {"stream_options": {"include_usage": True}} if stream else {}
        answer: Any = client.chat.completions.create(
            model="nano", messages=messages, max_completion_tokens=2, stream=stream, **options
        )
        usage = [chunk.usage for chunk in answer][-1] if stream else answer.usage
    rendered = pictured.post("/v1/chat/completions/render", {"messages": messages})
    assert usage.prompt_tokens == rendered["count"] > TOKENS
    assert [image["digest"] for image in pictured.images[-1]] == [DIGEST]


@pytest.mark.parametrize("stream", [False, True])
def test_openai_responses(pictured: Pictured, stream: bool) -> None:
    content = [{"type": "input_image", "image_url": URL, "detail": "auto"}, {"type": "input_text", "text": "what?"}]
    count = len(pictured.images)
    with openai.OpenAI(base_url=pictured.url + "/v1", api_key="x", max_retries=0) as client:
        items: Any = [{"role": "user", "content": content}]
        made: Any = client.responses.create(model="nano", input=items, max_output_tokens=2, stream=stream)
        response = list(made)[-1].response if stream else made
        counted = client.responses.input_tokens.count(model="nano", input=items).input_tokens
    assert response.usage.input_tokens == counted > TOKENS
    assert [image["digest"] for image in pictured.images[-1]] == [DIGEST] and len(pictured.images) == count + 1


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_messages(pictured: Pictured, stream: bool) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": BASE64}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "what?"}]
    with anthropic.Anthropic(base_url=pictured.url, api_key="x", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": content}]
        made: Any = client.messages.create(model="nano", messages=messages, max_tokens=2, stream=stream)
        usage = next(event.message.usage for event in made if event.type == "message_start") if stream else made.usage
        counted = client.messages.count_tokens(model="nano", messages=messages).input_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens == counted > TOKENS
    assert [image["digest"] for image in pictured.images[-1]] == [DIGEST]


def test_images_among_results_of_tools(pictured: Pictured) -> None:
    """The result of a tool may be a picture: of a screen, for example."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}}
    call = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [image, {"type": "text", "text": "seen"}]}
    messages = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, call]},
        {"role": "user", "content": [result]},
    ]
    assert pictured.post("/v1/messages", {"model": "nano", "max_tokens": 2, "messages": messages})["usage"]
    assert [found["digest"] for found in pictured.images[-1]] == [DIGEST]
    items = [
        {"type": "message", "role": "user", "content": "look"},
        {"type": "function_call", "call_id": "t1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "t1", "output": [{"type": "input_image", "image_url": URL}]},
    ]
    template = pictured.post(
        "/v1/responses", {"input": [*items[:1], {**items[0], "content": [*items[2]["output"]]}], "max_output_tokens": 2}
    )
    assert template["usage"]["input_tokens"] > TOKENS


def test_rendering_and_counting_generate_nothing(pictured: Pictured) -> None:
    count = len(pictured.images)
    messages = [{"role": "user", "content": [part(URL), TEXT]}]
    rendered = pictured.post("/v1/chat/completions/render", {"messages": messages})
    assert rendered["prompt"].count(PLACEHOLDER) == 1 and rendered["prompt_token_ids"].count(0) == TOKENS
    tokens = pictured.post("/tokenize", {"messages": messages})
    assert tokens["tokens"] == rendered["prompt_token_ids"] and len(pictured.images) == count


def test_size_of_images(pictured: Pictured) -> None:
    big = np.zeros((500, 500, 3), np.uint8)
    url = "data:image/png;base64," + base64.b64encode(png(big)).decode()
    messages = [{"role": "user", "content": [TEXT, part(url)]}]
    for kwargs, limit in ((None, CONFIG.max_pixels), ({"max_pixels": 90_000}, 90_000)):
        body = {"messages": messages, "mm_processor_kwargs": kwargs}
        expected = num_image_tokens(500, 500, CONFIG.limited(limit))
        for path, name in (("/v1/chat/completions/render", "prompt_token_ids"), ("/tokenize", "tokens")):
            assert pictured.post(path, body)[name].count(0) == expected
        usage = pictured.chat(TEXT, part(url), mm_processor_kwargs=kwargs)["usage"]
        assert expected < usage["prompt_tokens"] < expected + 20
    fault = pictured.chat(part(url), mm_processor_kwargs={"min_pixels": 4}, status=400)["error"]
    assert fault["param"] == "mm_processor_kwargs" and "may have 'max_pixels', got 'min_pixels'" in fault["message"]


# --- where images come from


def test_fetched_images(pictured: Pictured) -> None:
    pictured.pages = {"/p.png": png()}
    url = "https://pictures.example/p.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictured.state.fetcher, "_tls", None)
        for path, body in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": [part(url)]}], "max_tokens": 1}),
            ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}),
            (
                "/v1/messages",
                {
                    "max_tokens": 1,
                    "messages": [
                        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}
                    ],
                },
            ),
        ):
            pictured.post(path, body)
            assert [image["digest"] for image in pictured.images[-1]] == [DIGEST]
        counted = pictured.post(
            "/v1/responses/input_tokens",
            {"input": [{"role": "user", "content": [part(url) | {"type": "input_image", "image_url": url}]}]},
        )
        assert counted["input_tokens"] > TOKENS


def test_waiting_for_an_image_holds_nobody_up(pictured: Pictured) -> None:
    answers: list[Any] = []
    slow = threading.Thread(
        target=lambda: answers.append(pictured.chat(part("http://pictures.example/never"), status=400))
    )
    slow.start()
    start = time.monotonic()
    while slow.is_alive() and time.monotonic() - start < 1.5:
        pictured.chat(TEXT)
    assert slow.is_alive()  # several answers were given meanwhile
    slow.join()
    assert "did not come within 2 s" in answers[0]["error"]["message"]


BAD: list[tuple[Any, str]] = [
    (part("http://pictures.example/absent"), "messages[0].content[0]: the image's host answered 404"),
    (part("http://elsewhere.example/p.png"), "images of 'elsewhere.example' are not fetched"),
    (part("HTTP://127.0.0.1/"), "'127.0.0.1' are not fetched"),
    (part("file:///etc/passwd"), "the file is not in allowed_local_media_path"),
    (part("/etc/passwd"), "expected a URL with data: or file:, got '<path>'"),
    (part("data:image/png;base64,AAAA"), "messages[0].content[0]: not an image of PNG"),
    (
        part(f"data:image/png;base64,{base64.b64encode(png()[:5000]).decode()}"),
        "messages[0].content[0]: the PNG file is damaged or cut off",
    ),
    (part("data:image/png;base64,*"), "the base64 of the data: URL is not valid"),
    ({"type": "image_url"}, "must have 'image_url'"),
    ({"type": "image_url", "image_url": {"url": None}}, "image_url.url must be a text, got None"),
    ({"type": "image_url", "image_url": ["x"]}, "expected an image of Pillow"),
    ({"type": "image", "image": {"x": 1}}, "expected an image of Pillow"),
    ({"type": "image_pil", "image_pil": "/etc/passwd"}, "expected a URL with data: or file:"),
    (
        {"type": "video_url", "video_url": {"url": "x"}},
        "of type 'video_url', but this engine reads text and images only",
    ),
    ({"type": "input_audio", "input_audio": {}}, "reads text and images only"),
    ({"type": "text", "text": PLACEHOLDER}, "got 1 for 0 images"),
]


@pytest.mark.parametrize(("bad", "fault"), BAD, ids=[fault[:40] for _, fault in BAD])
@pytest.mark.parametrize("stream", [False, True])
def test_bad_images_are_a_400(pictured: Pictured, bad: Any, fault: str, stream: bool) -> None:
    error = pictured.chat(bad, status=400, stream=stream)["error"]
    assert fault in error["message"] and error["type"] == "invalid_request_error" and error["code"] == 400
    assert error["param"] == "messages"
    assert pictured.state.num_sequences == 0


def test_files_of_the_allowed_folder(pictured: Pictured, folder: Path) -> None:
    pictured.chat(part(f"file://{folder}/p.png"))
    assert [image["digest"] for image in pictured.images[-1]] == [DIGEST]
    error = pictured.chat(part(f"file://{folder}/absent.png"), status=400)["error"]
    assert "absent.png cannot be read" in error["message"] and str(folder) not in error["message"]


def test_other_apis_name_their_own_fields(pictured: Pictured) -> None:
    for url, fault in (("http://elsewhere.example/", "not fetched"), ("data:image/png;base64,AAAA", "not an image of")):
        body: dict[str, Any] = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}
        for path in ("/v1/responses", "/v1/responses/input_tokens"):
            error = pictured.post(path, body, 400)["error"]
            assert error["param"] == "input" and fault in error["message"]
        source = {"type": "url", "url": url}
        body = {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            answer = pictured.post(path, body, 400)
            assert answer["type"] == "error" and fault in answer["error"]["message"]
    for item, fault in (
        ({"type": "input_image", "file_id": "f"}, "file_id names nothing"),
        ({"type": "input_image"}, "image_url must be a text, got None"),
        ({"type": "input_file", "file_url": "x"}, "reads text and images only"),
    ):
        assert (
            fault
            in pictured.post("/v1/responses", {"input": [{"role": "user", "content": [item]}]}, 400)["error"]["message"]
        )
    for source, fault in (
        ({"type": "file", "file_id": "x"}, "source.type must be base64 or url, got 'file'"),
        ({"type": "base64", "data": "x"}, "source.media_type must be a text"),
        ({"type": "base64", "media_type": "text/plain", "data": "AAAA"}, "got the type 'text/plain'"),
        ({}, "source.type must be a text"),
        ("x", "source must be an object"),
    ):
        body = {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}
        assert fault in pictured.post("/v1/messages", body, 400)["error"]["message"]
    system = {
        "max_tokens": 1,
        "system": [{"type": "image", "source": {}}],
        "messages": [{"role": "user", "content": "x"}],
    }
    assert "this server reads text only" in pictured.post("/v1/messages", system, 400)["error"]["message"]


def test_limits(pictured: Pictured) -> None:
    error = pictured.chat(*[part(URL)] * 3, status=400)["error"]
    assert error["message"] == "at most 2 images may be in a prompt (--limit-mm-per-prompt), got 3"
    pictured.pages = {"/big": bytes(3 << 20)}
    error = pictured.chat(part("http://pictures.example/big"), status=400)["error"]
    assert "may have 1048576 bytes (--max-media-bytes)" in error["message"]
    wide = np.zeros((1600, 1600, 3), np.uint8)
    long = "data:image/png;base64," + base64.b64encode(png(wide)).decode()
    error = pictured.chat(part(long), status=400)["error"]
    assert error["code"] == "context_length_exceeded" and error["n_prompt_tokens"] > 2500
    error = pictured.chat(part(URL), status=400, truncate_prompt_tokens=5)["error"]
    assert error["param"] == "truncate_prompt_tokens"


def test_nothing_is_fetched_unless_hosts_are_allowed() -> None:
    with pictured_server(()) as closed:
        closed.pages = {"/p.png": png()}
        error = closed.chat(part("http://pictures.example/p.png"), status=400)["error"]
        assert (
            "this server fetches no images: send a data: URL (--allowed-media-domains names hosts)" in error["message"]
        )
        error = closed.chat(part("file:///etc/hostname"), status=400)["error"]
        assert "file: URLs are refused without allowed_local_media_path" in error["message"]
        assert closed.chat(part(URL))["usage"]["prompt_tokens"] > TOKENS


def test_a_model_of_text(server: LiveServer) -> None:
    messages = [{"role": "user", "content": [TEXT, part("http://127.0.0.1/x.png")]}]
    answer = server.post("/v1/chat/completions", {"messages": messages})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"
    assert "messages[0].content[1] is of type 'image_url', but this engine reads text only" in answer.text


def test_clients_of_one_key_do_not_time_those_of_another(pictured: Pictured) -> None:
    """An image that another client has sent is not known by the same name, where requests name salts."""
    digests = []
    for salt in (None, "a", "b"):
        pictured.chat(part(URL), cache_salt=salt)
        digests.append(pictured.images[-1][0]["digest"])
    assert digests[0] == DIGEST and len(set(digests)) == 3
