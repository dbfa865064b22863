"""Text from outside shows in markdown as it is, wherever it stands; a parser of markdown is the judge."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clmem.harness.text import clean
from clmem.reports.markdown.markup import cell_text, code, harmless, link, plain
from clmem.reports.markdown.tables import MOST_ROWS, markdown_table

markdown_it = pytest.importorskip("markdown_it")  # rich brings it
parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

MARKUP = st.text(st.sampled_from("\\`*_[](){}<>!#+-=.&~|:\"'a1 \n\t\x1b\u2028\u202e\ud800/;"), max_size=30)
ANYTHING = st.one_of(MARKUP, st.text(st.characters(codec=None), max_size=60))


def shown(text: str, kinds: set[str]) -> str:
    """Return what a reader sees of a line of markdown; fail where it is more than one paragraph of some kinds."""
    tokens = parser.parse(text)
    if not tokens:
        return ""
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"], text
    children = tokens[1].children
    assert {child.type for child in children} <= kinds, text
    return "".join(child.content for child in children)


@given(ANYTHING)
@example("](javascript:alert(1))")
@example("![x](http://a/b.png)")
@example("<script>alert(1)</script>")
@example("a\\|b \\` &lt; &#x6a; --- ~~c~~")
@example("1. one")
@example("> a")
def test_any_text_is_shown_as_it_is(text: str) -> None:
    assert shown(plain(text), {"text"}) == clean(text)
    assert "](" not in plain(text)
    assert "<" not in plain(text)


@given(ANYTHING)
@example("see https://example.com and WWW.example.com or $\\href{javascript:a}{b}$")
def test_nothing_becomes_a_link_or_a_formula_on_github(text: str) -> None:
    assert "://" not in plain(text)
    assert "www." not in plain(text).lower()
    assert "$" not in plain(text).replace("\\$", "")
    assert shown(plain(text), {"text"}) == clean(text)


@given(ANYTHING)
def test_any_text_is_shown_as_it_is_behind_a_bullet(text: str) -> None:
    kinds = [token.type for token in parser.parse(f"- {plain(text)}x")]
    assert kinds[:3] == ["bullet_list_open", "list_item_open", "paragraph_open"]
    assert len(kinds) == 7


@given(ANYTHING)
def test_any_name_of_an_operation_is_shown_as_code_or_as_it_is(text: str) -> None:
    assert shown(code(text), {"text", "code_inline"}) == clean(text)


@given(st.lists(st.lists(ANYTHING, min_size=3, max_size=3), min_size=1, max_size=4))
def test_any_text_stays_in_its_cell(rows: list[list[str]]) -> None:
    table = markdown_table(["a|b", "c", "d"], [[first, code(second), third] for first, second, third in rows], left=3)
    tokens = parser.parse(table)
    assert tokens[0].type == "table_open"
    assert tokens[-1].type == "table_close"
    cells = ["".join(child.content for child in token.children) for token in tokens if token.type == "inline"]
    assert cells == ["a|b", "c", "d", *(clean(text) for row in rows for text in row)]


@given(ANYTHING)
@example("\\\\](javascript:alert(1))")
@example("[a]: javascript:b")
def test_what_a_claim_s_author_writes_makes_no_link_and_no_tag(text: str) -> None:
    kinds = {child.type for token in parser.parse(harmless(text)) for child in token.children or []}
    assert not kinds & {"link_open", "image", "html_inline"}
    assert "<" not in harmless(text)
    assert "](" not in harmless(text)


def test_the_usual_stays_readable() -> None:
    for text in ("derpp (alpha=0.1, memory_size=15)", "-1.5", "aten::convolution_backward", "+0.3 ± 0.1", "—", "1.25"):
        assert plain(text) == cell_text(text) == text
    assert code("aten::convolution_backward") == "`aten::convolution_backward`"
    assert link("a-w64-lightcl@released.png") == "a-w64-lightcl@released.png"
    assert link("a(1)%2e.png") == "a%281%29%252e.png"


def test_a_table_has_an_end() -> None:
    table = markdown_table(["a", "b"], [["x", "1"]] * (MOST_ROWS + 7))
    assert len(table.splitlines()) == MOST_ROWS + 3
    assert "7 more rows" in table.splitlines()[-1]
