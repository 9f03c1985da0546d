"""Two hundred texts that would like to be something else: tags, scripts, turning marks, terminal commands, formulas."""

from __future__ import annotations

from itertools import product

_RUN = "globalThis.hacked=1"
_TAGS = [
    f"<img src=x onerror={_RUN}>",
    f"<script>{_RUN}</script>",
    f"</script><script>{_RUN}//",
    f"<svg onload={_RUN}>",
    f"<iframe srcdoc='<script>parent.{_RUN}</script>'></iframe>",
    f'<a href="javascript:{_RUN}">click</a>',
    f"<details open ontoggle={_RUN}>",
    f"<body onload={_RUN}>",
    f"<style>*{{background:url('javascript:{_RUN}')}}</style>",
    f"<math><mtext><img src=x onerror={_RUN}></math>",
    f"<input autofocus onfocus={_RUN}>",
    "<b>bold</b><i>i</i><br><sub>1</sub><sup>2</sup>",
    '<a href="https://example.org">link</a>',
    "<!-- comment",
    "<![CDATA[x]]>",
    "&lt;b&gt; &amp;amp; &#60;script&#62; &nbsp;",
    f"{{{{constructor.constructor('{_RUN}')()}}}}",
    f"${{{_RUN}}}",
    f"';{_RUN};//",
    f'";{_RUN};//',
]
_SIGNS = [
    "\u202eevil\u202c",
    "\u2066a\u2067b\u2069",
    "\u200b\u200c\u200d\ufeff",
    "\u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "Z\u0351\u036b\u0343a\u0363\u0367l\u0368g\u0314o\u0301" * 3,
    "\ud7ff\ue000\ufffd\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\x00\x01\x02\x07\x08\x0b\x0c\x0e\x1f\x7f\x9b",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b[2J",
    "\r\nforged: line\r",
    "\t\ttabs\u00a0and\u2003spaces   ",
    "$\\frac{1}{0}$ \\(x\\) \\[y\\] $$\\href{javascript:globalThis.hacked=1}{z}$$",
    "%s %d %n {0} {name} {{}} %(x)s",
    "__proto__",
    "constructor",
    "NaN",
    "null",
    "-0.0e400",
    "'; DROP TABLE runs; --",
    "../../../../etc/passwd",
    "https://example.org/?a=1&b=2#c",
]
_FRAMES = ["{}", "name-{}", "{}" + "w" * 3000, "{} {}", "`{}` **x** [y](javascript:globalThis.hacked=1)"]

HOSTILE = [frame.replace("{}", core) for core, frame in product(_TAGS + _SIGNS, _FRAMES)]
