"""From messages to tokens and back, once for engine and gateway alike: tokenizers and jinja2, no torch."""
