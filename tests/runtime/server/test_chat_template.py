"""Chat templates as a server takes them at its start."""

import logging
import shutil
from pathlib import Path

import pytest

from quire_api.errors import UserError
from quire_runtime.server.run import load_tokenizer
from quire_text.chat import render
from quire_text.errors import ChatTemplateError

TINY = Path(__file__).parents[3] / "models" / "quire-tiny"
HELLO = [{"role": "user", "content": "hello"}]
BROKEN = "{% if %}"


def test_a_given_template_takes_the_place_of_the_models(tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[0].content }}!")
    for given in (str(file), file.read_text()):
        assert render(load_tokenizer(TINY, given), HELLO) == "hello!"


def test_a_given_template_that_does_not_compile_is_refused():
    with pytest.raises(ChatTemplateError, match=r"does not compile: .* \(line 1\)"):
        load_tokenizer(TINY, BROKEN)


def test_a_given_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"'/none.jinja' cannot be read: No such file or directory\.$"):
        load_tokenizer(TINY, "/none.jinja")


def test_of_a_models_own_broken_template_the_log_tells(tmp_path, caplog):
    model = Path(shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    (model / "chat_template.jinja").write_text(BROKEN)
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(model, None)
    assert "does not compile" in caplog.text
    assert tokenizer.encode("hello")
