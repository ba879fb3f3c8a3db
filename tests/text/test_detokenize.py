import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.decoders import DecodeStream

from quire_text.detokenize import Detokenizer
from quire_text.tokenizer import Tokenizer

TEXTS = st.text(alphabet=st.sampled_from("abc the\n \tßö你好世界👩\u200d👧🇩🇪é\u0301"), max_size=40)


def pieces(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip)
    return [*(detokenizer.push([token]) for token in ids), detokenizer.finish()]


@given(text=TEXTS)
def test_pieces_of_a_text_join_to_its_decoding(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    for skip in (True, False):
        shown = pieces(tokenizer, ids, skip)
        assert "".join(shown) == tokenizer.decode(ids, skip)
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(shown)


@given(ids=st.lists(st.integers(0, 399), max_size=30), cuts=st.lists(st.integers(1, 5), min_size=30, max_size=30))
def test_any_tokens_join_to_their_decoding(byte_level_tokenizer: Tokenizer, ids: list[int], cuts: list[int]):
    detokenizer = Detokenizer(byte_level_tokenizer)
    shown, rest = "", ids
    for cut in cuts:
        shown += detokenizer.push(rest[:cut])
        rest = rest[cut:]
    assert shown + detokenizer.finish() == byte_level_tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 290), max_size=30))
def test_broken_byte_runs_do_not_end_a_stream(byte_fallback_tokenizer: Tokenizer, ids: list[int]):
    assert isinstance("".join(pieces(byte_fallback_tokenizer, ids)), str)


@given(ids=st.lists(st.integers(0, 399), max_size=30), skip=st.booleans())
def test_each_piece_comes_as_early_as_the_library_gives_it(byte_level_tokenizer: Tokenizer, ids: list[int], skip: bool):
    """Or earlier: bytes that cannot become a character are not held until one comes."""
    stream = DecodeStream(skip_special_tokens=skip)
    theirs = [stream.step(byte_level_tokenizer.backend, token) or "" for token in ids]
    ours = pieces(byte_level_tokenizer, ids, skip)
    for count in range(1, len(ids) + 1):
        assert "".join(ours[:count]).startswith("".join(theirs[:count]))


def test_a_character_appears_once_it_is_complete(tokenizer: Tokenizer):
    ids = tokenizer.encode("你", add_special_tokens=False)
    shown = pieces(tokenizer, ids)
    assert len(ids) >= 3
    assert shown[-2:] == ["你", ""]
    assert not any(shown[:-2])


def test_bytes_that_never_become_a_character_come_at_the_end(tokenizer: Tokenizer):
    ids = tokenizer.encode("a你", add_special_tokens=False)[:-1]
    shown = pieces(tokenizer, ids)
    assert "".join(shown[:-1]) == "a"
    assert set(shown[-1]) == {"\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize("text", ["你", "👩"])
def test_a_part_of_a_character_that_is_repeated_for_ever_is_shown_meanwhile(tokenizer: Tokenizer, text: str):
    beginning = tokenizer.encode(text, add_special_tokens=False)[0]
    assert any(pieces(tokenizer, [beginning] * 100)[:-1])


def test_a_character_is_whole_around_a_token_that_is_not_shown(byte_level_tokenizer: Tokenizer):
    ids = byte_level_tokenizer.encode("你", add_special_tokens=False)
    hidden = next(token for token in range(400) if byte_level_tokenizer.is_special(token))
    assert "".join(pieces(byte_level_tokenizer, [ids[0], hidden, *ids[1:]])) == "你"


def test_a_word_after_a_prompt_keeps_its_space(byte_fallback_tokenizer: Tokenizer):
    prompt = byte_fallback_tokenizer.encode("one")
    word = byte_fallback_tokenizer.encode("the", add_special_tokens=False)
    assert Detokenizer(byte_fallback_tokenizer).push(word) == "the"
    assert Detokenizer(byte_fallback_tokenizer, prompt_ids=prompt).push(word) == " the"


def test_a_prompt_cut_inside_a_character_is_not_repeated(tokenizer: Tokenizer):
    prompt = tokenizer.encode("a你", add_special_tokens=False)[:-1]
    detokenizer = Detokenizer(tokenizer, prompt_ids=prompt)
    assert detokenizer.push(tokenizer.encode("b", add_special_tokens=False)).strip() == "b"


@pytest.fixture(scope="module")
def byte_level_tokenizer(byte_level_directory) -> Tokenizer:
    return Tokenizer.from_directory(byte_level_directory)
