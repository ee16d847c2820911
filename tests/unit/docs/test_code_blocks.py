"""Pages are split into command blocks with their expected output."""

from __future__ import annotations

from tests.code_blocks import steps, words

PAGE = """\
# Title

```sh
one
```

```text
prints
this
```

```sh
# Needs a real cluster
two
```

```yaml
text: no
```
"""


def test_each_command_block_has_its_output() -> None:
    one, two = steps(PAGE)
    assert (one.line, one.commands, words(one.printed)) == (3, "one\n", "prints this")
    assert not one.needs_real_cluster
    assert two.needs_real_cluster
    assert two.printed == ""
