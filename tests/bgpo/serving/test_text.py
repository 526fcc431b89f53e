"""Which text of an answer is given away when, and where it ends."""

from __future__ import annotations

from bgpo.serving.text import AnswerText

END = 0


def decode(ids: list[int]) -> str:
    """Bytes; the end token is nothing."""
    return bytes(i for i in ids if i != END).decode("utf-8", errors="replace")


def answer(max_tokens: int = 100, *stop: str) -> AnswerText:
    return AnswerText(decode, {END}, max_tokens, stop)


def ids(text: str) -> list[int]:
    return list(text.encode())


def test_pieces_are_what_is_new() -> None:
    text = answer()
    assert text.advance(ids("ab"), complete=False) == "ab"
    assert text.finish_reason is None
    assert text.advance(ids("abcd"), complete=False) == "cd"
    assert text.advance([*ids("abcde"), END, *ids("xyz")], complete=False) == "e"
    assert (text.finish_reason, text.tokens) == ("stop", 6)


def test_without_an_end_it_ends_with_the_canvas() -> None:
    text = answer()
    assert text.advance(ids("abcd"), complete=True) == "abcd"
    assert (text.finish_reason, text.tokens) == ("length", 4)


def test_it_is_cut_to_max_tokens() -> None:
    text = answer(3)
    assert text.advance(ids("ab"), complete=False) == "ab"
    assert text.advance(ids("abcdef"), complete=False) == "c"
    assert (text.finish_reason, text.tokens) == ("length", 3)


def test_an_end_token_behind_max_tokens_does_not_count() -> None:
    text = answer(2)
    assert text.advance([*ids("abc"), END], complete=True) == "ab"
    assert text.finish_reason == "length"


def test_half_a_character_is_held_back() -> None:
    whole = ids("a\u00e9")
    text = answer()
    assert text.advance(whole[:2], complete=False) == "a"
    assert text.advance(whole, complete=False) == "\u00e9"


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    text = answer()
    assert text.advance(ids("a\u00e9")[:2], complete=True) == "a\ufffd"


def test_a_stop_string_cuts_the_text() -> None:
    text = answer(100, "###")
    assert text.advance(ids("ab#"), complete=False) == "ab"
    assert text.advance(ids("ab##c"), complete=False) == "##c"
    assert text.advance(ids("ab##cd###e"), complete=False) == "d"
    assert (text.finish_reason, text.tokens) == ("stop", 9)


def test_the_first_of_several_stop_strings_counts() -> None:
    text = answer(100, "yy", "x")
    assert text.advance(ids("axyy"), complete=False) == "a"
    assert (text.finish_reason, text.tokens) == ("stop", 2)


def test_what_may_have_begun_a_stop_string_comes_at_the_end() -> None:
    text = answer(100, "stop")
    assert text.advance(ids("a sto"), complete=False) == "a "
    assert text.advance([*ids("a sto"), END], complete=True) == "sto"
    assert text.finish_reason == "stop"
