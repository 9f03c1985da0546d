"""Templates that a stranger wrote end: in a text, or in a sentence."""

from __future__ import annotations

import tracemalloc

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtune.data.formats.jinja_rows import template_format
from nbtune.data.template import environment
from nbtune.data.template.chat_template import render_text
from nbtune.data.template.demands import TemplateLimit
from nbtune.data.template.environment import compile_template
from nbtune.errors import DataError, NbtuneError

NESTED = (
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
)
ENDLESS = [
    NESTED,
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% block b %}{% if true %}{{ self.b() }}{{ self.b() }}{% endif %}{% endblock %}",
    "{% for x in range(9999) recursive %}{{ loop(range(9999)) if loop.depth < 5 }}{% endfor %}",
    "{% set n = namespace(a='aaaa') %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "{% set n = namespace(a='aaaa') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "{% set n = namespace(a=3) %}{% for i in range(60) %}{% set n.a = n.a * n.a %}{% endfor %}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 'a' * 10000000000 }}",
    "{{ [1] * 10000000000 }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ 'a'.center(10000000000) }}",
    "{{ 'a'|center(10000000000) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).join(range(99999)|list) }}",
    "{{ range(1000000000)|list }}",
]
BROKEN = [
    "{{ 1/0 }}",
    "{{ 1 % 0 }}",
    "{{ [].pop() }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'a' + 1 }}",
]


@pytest.mark.parametrize("template", ENDLESS)
def test_what_would_not_end_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MOST_STEPS", 20_000)
    with pytest.raises((jinja2.TemplateError, OverflowError)):
        render_text(template, [{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("template", [*ENDLESS[8:], *BROKEN])
def test_a_template_of_rows_that_fails_is_an_error_of_the_row(template: str) -> None:
    with pytest.raises(DataError, match="the template fails on it"):
        template_format(template + "{{ a }}", ["a"], "rows").read({"a": "x"})


@pytest.mark.parametrize(
    "template",
    [
        "{{ '{:30000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=30000000) }}",
        "{{ '{0:{1}}'.format(1, 30000000) }}",
        "{{ '{a:{w}}'.format_map({'w': 30000000, 'a': 1}) }}",
        "{{ '{:.30000000f}'.format(1.0) }}",
        "{{ '%30000000d'|format(1) }}",
        "{{ '%*d'|format(30000000, 1) }}",
        "{{ [1, 2]|batch(300000000, 0)|list }}",
        "{{ [1, 2]|slice(300000000)|list }}",
        "{{ {'a': 1}|tojson(indent=300000000) }}",
    ],
)
def test_what_would_be_large_is_refused_before_it_is_made(template: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(jinja2.TemplateError):
            render_text(template, [{"role": "user", "content": "hi"}])
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


TWICE = "{% set n = namespace(a=(1,), b=(1,), d={}) %}{% for i in range(14) %}"
TWICE += "{% set n.a = (n.a, n.a) %}{% set n.b = (n.b, n.b) %}{% set n.d = {'a': n.d, 'b': n.d} %}{% endfor %}"


@pytest.mark.parametrize(
    "use",
    [
        *("{{ n.a }}", "{{ n.d }}", "{{ n }}", "{{ n.a ~ 1 }}", "{{ [n.a] == [n.b] }}", "{{ {n.a: 1} }}"),
        *("{{ n.d|tojson }}", "{{ n.a|pprint }}", "{{ n.a|upper }}", "{{ [n.a]|join }}", "{{ '%s'|format(n.a) }}"),
        *("{{ '%s' % [n.a] }}", "{{ '{}'.format(n.a) }}", "{{ [n.a, n.b]|sort }}", "{{ [n.a, n.b]|unique|list }}"),
        *("{{ n.a is eq(n.b) }}", "{{ [n.a].index(n.b) }}", "{{ n.d[n.a] }}", "{{ n.d.get(n.a) }}"),
        *("{% for x in [1] %}{{ loop.changed(n.a) }}{% endfor %}", "{% autoescape true %}{{ n.a }}{% endautoescape %}"),
        "{{ [n.a, n.b]|groupby(0)|list }}",
    ],
)
def test_few_lists_within_lists_are_not_written_out_or_compared_where_that_would_not_end(
    use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "MOST_MADE", 1 << 18)
    with pytest.raises(TemplateLimit):
        render_text(TWICE + use, [])


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99) %}{% set n.a = [n.a, s[i:]] %}{% endfor %}",
        "{% for i in range(99) %}{% set n.a = [n.a, s.upper()] %}{% endfor %}",
        "{% for i in range(99) %}{% set n.a = [n.a, s|upper] %}{% endfor %}",
        "{% for i in range(99) %}{% set n.a = [n.a, ['x'] * 9999] %}{% endfor %}",
        "{% for i in range(99) %}{% set n.a = [n.a, range(9999)|list] %}{% endfor %}",
        "{% for i in range(9999) %}{% set n.a = [n.a, " + "1," * 200 + "] %}{% endfor %}",
        "{% for i in range(9999) %}{% set n.a = {'a': n.a, "
        + ",".join(f"{i}: 1" for i in range(200))
        + "} %}{% endfor %}",
        "{{ ('\N{GRINNING FACE}' * 400000)|length }}",
        "{{ (s * 4)|list|length }}",
        "{{ (s * 4)|e|length }}",
        "{{ (s * 4)|wordwrap(1)|length }}",
        "{{ (s * 4)|urlencode|length }}",
        "{{ {'a': s * 4}|xmlattr|length }}",
        "{{ ('a b' * 99999)|title|length }}",
        "{{ ('a ' * 99999).split(' ')|length }}",
        "{{ s.translate({97: 'x' * 99})|length }}",
        "{{ ('\n' * 99999)|indent(99)|length }}",
        "{{ ([[1] * 99] * 999)|sum(start=[])|length }}",
        "{{ (['a'] * 9999)|join('b' * 999)|length }}",
        "{{ ('%(a)s' * 999) % {'a': s} }}",
        "{{ ('{a}' * 999).format(a=s) }}",
    ],
)
def test_what_is_made_piece_by_piece_or_kept_is_bounded(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MOST_MADE", 1 << 20)
    begin = "{% set n = namespace(a=0) %}{% set s = 'a' * 99999 %}"
    tracemalloc.start()
    try:
        with pytest.raises(TemplateLimit):
            render_text(begin + template, [])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_numbers_of_usual_sizes_are_multiplied_as_often_as_a_long_chat_asks() -> None:
    template = "{% for m in messages %}{{ loop.index * 1000 * 1000 }} {% endfor %}"
    assert render_text(template, [{"role": "user", "content": ""}] * 9999).split()[-1] == "9999000000"
    with pytest.raises(TemplateLimit, match="digits"):
        render_text("{% set n = namespace(a=3) %}{% for i in range(20) %}{% set n.a = n.a * n.a %}{% endfor %}", [])


@pytest.mark.parametrize("how", ["split()", "splitlines()", "split(' ')", "rsplit(' ', 3)"])
def test_a_text_of_megabytes_may_be_split(how: str) -> None:
    assert render_text(
        "{{ messages[0].content." + how + "|length }}", [{"role": "user", "content": "words, " * 300_000}]
    )


def test_a_large_row_may_be_made_into_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MOST_MADE", 1 << 18)
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1]|trim ~ '\n' }}{{ m|tojson }}{% endfor %}"
    said = [{"role": "user", "content": "I think " * 40}] * 2000
    assert len(render_text(template, said)) == 2000 * 671
    with pytest.raises(TemplateLimit):
        render_text(template * 20, said)


def test_formats_of_usual_widths_are_as_python_has_them() -> None:
    template = "{{ '{:>{w}}|{}'.format(7, 2024, w=4) }} {{ '%5d'|format(3) }} {{ [1, 2, 3]|batch(2)|list }}"
    assert render_text(template, []) == "   7|2024     3 [[1, 2], [3]]"


def test_a_template_that_is_longer_than_any_is_a_broken_one() -> None:
    """One of 16 MiB was compiled for forty seconds, before it was run."""
    with pytest.raises(jinja2.TemplateSyntaxError, match="it has 524,289 characters, of at most 524,288"):
        compile_template("x" * (environment.LONGEST + 1))


@pytest.mark.parametrize("depth", [30, 2000])
@pytest.mark.parametrize("pieces", [("{% for x in a %}", "{% endfor %}"), ("{{ " + "(" * 1, ") }}")])
def test_a_template_that_is_nested_too_deeply_is_a_broken_one(depth: int, pieces: tuple[str, str]) -> None:
    text = "{% for x in a %}" * depth + "{% endfor %}" * depth if "for" in pieces[0] else "{{ " + "(" * 9999 + "a }}"
    with pytest.raises(jinja2.TemplateSyntaxError):
        compile_template(text)


def test_a_long_chat_is_rendered() -> None:
    template = "{% for m in messages %}{{ '<' + m.role + '>' + m.content ~ '</s>' }}{% endfor %}"
    assert render_text(template, [{"role": "user", "content": "hi" * 50}] * 10_000).count("</s>") == 10_000


PIECES = [
    "{{ a }}",
    "{{ 1/0 }}",
    "{% for x in a %}",
    "{% endfor %}",
    "{{ x[0] }}",
    "{{ a|int * 9 }}",
    "{{ a ~ a }}",
    "{{",
]
PIECES += ["{% if a %}", "{% else %}", "{% endif %}", "{{ a.b.c }}", "{{ a[9] }}", "{{ a() }}", "}}"]
PIECES += ["{{ a.__class__ }}", "{% generation %}", "{% endgeneration %}", "{{ a|tojson }}", "{{ a % 3 }}"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.text() | st.integers() | st.lists(st.integers()))
def test_whatever_is_written_is_a_text_or_a_sentence(template: str, value: object) -> None:
    try:
        parts = template_format(template + "{{ a }}", ["a"], "rows").read({"a": value})
    except NbtuneError:
        return
    assert parts is not None
