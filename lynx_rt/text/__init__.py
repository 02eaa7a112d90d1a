"""Text and token ids: tokenizers and their files, detokenizing, chat templates, stop strings."""
