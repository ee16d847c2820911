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


def test_each_block_of_commands_has_what_it_prints() -> None:
    one, two = steps(PAGE)
    assert (one.line, one.commands, words(one.printed)) == (3, "one\n", "prints this")
    assert not one.needs_real_cluster
    assert two.needs_real_cluster
    assert two.printed == ""
