"""The images of a chat's messages, before the messages become a prompt: those that are elsewhere are fetched."""

from __future__ import annotations

from typing import Any

from lynx_rt.errors import ValidationError
from lynx_rt.server.errors import bad_request
from lynx_rt.server.state import ServerState
from lynx_rt.text.image_parts import image_kind, image_url


async def fetch_images(messages: Any, state: ServerState) -> bool:
    """Puts the bytes of an image in the place of each http URL in the messages. Returns whether there are images, which take long.

    Raises ApiError for images that may not be fetched, or that do not come.
    """
    parts = [
        (part, f"messages[{index}].content[{place}]")
        for index, message in enumerate(messages if isinstance(messages, list) else ())
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for place, part in enumerate(message["content"])
        if image_kind(part) is not None
    ]
    engine = state.ready_engine()
    if not parts or not engine.inputs.images.reads_images:
        return False
    limit = engine.inputs.images.max_images
    if len(parts) > limit:
        raise bad_request(
            f"at most {limit} images may be in a prompt (--limit-mm-per-prompt), got {len(parts)}", "messages"
        )
    remote = []
    for part, name in parts:
        found = image_url(part)
        if found is not None and found[0][found[1]].strip().lower().startswith(("http:", "https:")):
            remote.append((*found, name))
    if remote:
        if not state.settings.allowed_media_domains:
            raise bad_request(
                f"{remote[0][2]}: this server fetches no images: send a data: URL (--allowed-media-domains names hosts)",
                "messages",
            )
        try:
            urls = [(holder[key].strip(), name) for holder, key, name in remote]
            for (holder, key, _), data in zip(remote, await state.fetcher.fetch_all(urls), strict=True):
                holder[key] = data
        except ValidationError as error:
            raise bad_request(str(error), "messages") from None
    return True
