import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_text.stop import StopMatcher

AB = st.text(alphabet="ab", min_size=1, max_size=4)


def naive(text: str, stop: list[str], include: bool) -> tuple[str, str | None]:
    """The first end at which any stop string is complete; of several there, the longest."""
    for end in range(len(text) + 1):
        met = [word for word in stop if text[:end].endswith(word)]
        if met:
            word = max(met, key=len)
            return text[: end if include else end - len(word)], word
    return text, None


@given(text=st.text(alphabet="abc", max_size=30), stop=st.lists(AB, max_size=3), data=st.data())
def test_any_cutting_gives_what_the_whole_text_gives(text: str, stop: list[str], data: st.DataObject):
    include = data.draw(st.booleans())
    matcher = StopMatcher(stop, include)
    shown, rest = "", text
    while rest:
        cut = data.draw(st.integers(1, 4))
        piece, rest = rest[:cut], rest[cut:]
        shown += matcher.push(piece)
        assert naive(text, stop, include)[0].startswith(shown)
    shown += matcher.flush()
    assert (shown, matcher.stopped) == naive(text, stop, include)


@pytest.mark.parametrize(
    ("pieces", "released"),
    [
        (["Hello", " world"], ["Hello", " world"]),
        (["Hello\n", "\nworld"], ["Hello", ""]),
        (["Hello\n", "world\n", "\n"], ["Hello", "\nworld", ""]),
        (["a\n\nb", "c"], ["a", ""]),
    ],
)
def test_only_a_possible_beginning_is_held_back(pieces: list[str], released: list[str]):
    matcher = StopMatcher(["\n\n"])
    assert [matcher.push(piece) for piece in pieces] == released


def test_without_stop_strings_nothing_is_held():
    matcher = StopMatcher([])
    assert matcher.push("anything") == "anything"
    assert matcher.flush() == ""
