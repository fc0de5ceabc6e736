"""A chat template is a program of whoever made the folder: it ends, and makes no text that does not fit."""

from __future__ import annotations

import pytest

from workers.models.generation.chat_templates import TemplateError, compiled, rendered

MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hi!"}]


def grown(step: str) -> str:
    return "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = " + step + " %}{% endfor %}{{ ns.s }}"


ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that skip": "{% for a in range(999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "a loop with a text": "{% for a in range(90000) %}" + "y" * 100_000 + "{% endfor %}",
    "a loop that searches": "{% for a in range(90000) %}{% if 'q' in 'x' * 290000 %}{% endif %}{% endfor %}",
    "filters of many": "{% for a in range(90000) %}{{ range(90000)|sum }}{% endfor %}",
    "lazy filters": "{% for a in range(90000) %}{{ range(90000)|map('string')|join|length }}{% endfor %}",
    "a macro without end": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "macros in macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a recursive loop": "{% for x in [60] recursive %}{% if x %}{{ loop([x-1, x-1]) }}{% endif %}{% endfor %}",
    "doubled": grown("ns.s ~ ns.s"),
    "added": grown("ns.s + ns.s"),
    "listed": grown("[ns.s, ns.s]"),
    "tuples": grown("(ns.s, ns.s)"),
    "dicts": grown("{'a': ns.s, 'b': ns.s}"),
    "made dicts": grown("dict(a=ns.s, b=ns.s)"),
    "joined": grown("[ns.s, ns.s]|join"),
    "replaced": grown("ns.s.replace('x', 'xx')"),
    "blocks": "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% set ns.s = x %}{% endfor %}",
}
HUGE = [
    "'x' * 400_000", "'x' * 10**9", "[1] * 10**9", "10**9 * 'x'", "((10**10)**10)**9**9", "'%1000000000d' % 1", "'%*d' % (10**9, 1)",
    "'%1000000000s'|format(1)", "'%*d'|format(10**9, 1)", "'{:1000000000}'.format(1)", "'{:{}}'.format('x', '1000000000')",
    "'{:{}}'.format(1, 10**9)", "'{0:>{w}}'.format('x', w='1000000000')", "'{:1000000000}'.format_map({})",
    "'x'.ljust(10**9)", "'x'.center(10**9)", "'x'.zfill(10**9)", "'\\t'.expandtabs(10**9)", "'x'|center(10**9)",
    "'x'|indent(10**9)", "[1]|tojson(indent=10**9)", "'x'|batch(10**9, 'y')|list", "range(10**9)|list",
    "('x' * 200000)|replace('x', 'y' * 200000)", "('x' * 200000).replace('x', 'y' * 200000)",
    "('x' * 200000).translate({120: 'y' * 200000})", "('y' * 200000).join('x' * 200000)",
    "('x' * 200000)|list|join('y' * 200000)", "('{0}' * 60000).format('x' * 200000)",
    "('%(a)s' * 40000) % {'a': 'x' * 200000}", "'a'.join(['x' * 100000] * 100000)", "('x,' * 100000).split(',') * 1000",
    "lipsum(n=100000)", "1 / 0", "messages.append(1)", "(" * 3000 + "1" + ")" * 3000, "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("source", [*ENDLESS.values(), *("{{ " + one + " }}" for one in HUGE)], ids=[*ENDLESS, *HUGE])
def test_a_template_that_does_not_end_is_refused(source: str) -> None:
    """Each would take minutes, or gigabytes; whatever else it raises is a refusal, too."""
    with pytest.raises(TemplateError):
        rendered(compiled(source), MESSAGES, {})


def test_a_template_that_is_a_bomb_itself_is_refused() -> None:
    for source in ("{% if a %}" * 1000 + "{% endif %}" * 1000, "x" * 300_000, "{{ [" + "[" * 500 + "]" * 500 + "] }}"):
        with pytest.raises(TemplateError):
            compiled(source)


def test_what_templates_do_is_as_in_jinja() -> None:
    """Steps are taken behind the scenes: loops, their variables, concatenations, lists and formats give the same."""
    source = """{%- macro turn(m, n) -%}<{{ m.role }} {{ n }}>{{ m['content'] | trim }}{% endmacro -%}
{%- set ns = namespace(last=none, found=[]) -%}
{%- for m in messages -%}
{%- if loop.first and not loop.last %}{{ '%s of %d' % (loop.index, loop.length) }}{% endif -%}
{{ turn(m, loop.index0 ~ '/' ~ messages | length) }}{% set ns.last = m.role %}{% set ns.found = ns.found + [m.role] %}
{%- endfor -%}
{%- for key, value in {'a': 1, 'b': [2, 'c']}.items() %}{{ key ~ value }}{% if key == 'b' %}{% break %}{% endif %}{% endfor -%}
{{ ns.last }} {{ ns.found }} {{ ns.found | tojson }} {{ 2 ** 3 * 4 % 5 }} {{ (1, 'x') }} {{ 'a b'.split(' ') | join('-') }}
{%- for i in range(3) if i != 1 %}{{ i }}{% else %}none{% endfor %}{{ '{:>4}'.format('x') }}{{ none }}"""
    assert rendered(compiled(source), MESSAGES, {}) == (
        "1 of 2<user 0/2>hello<assistant 1/2>Hi!a1b[2, 'c']assistant ['user', 'assistant']\n"
        """ ["user", "assistant"] 2 (1, 'x') a-b02   xNone"""
    ).replace("\n", "")


def test_a_long_dialogue_has_room() -> None:
    """A thousand turns of a hundred characters, and one of a million: steps and sizes grow with the messages."""
    source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim + '\n' }}{{ messages|length }}{% endfor %}"
    for messages in ([{"role": "user", "content": "x" * 100}] * 1000, [{"role": "user", "content": "x" * 1_000_000}]):
        assert len(rendered(compiled(source), messages, {})) > sum(len(m["content"]) for m in messages)
