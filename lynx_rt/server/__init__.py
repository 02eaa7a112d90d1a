"""The HTTP server of `lynx-rt serve`: OpenAI's API over one engine. Needs the extra [serve]."""
