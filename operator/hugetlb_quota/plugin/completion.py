"""Completion: kubectl's protocol, and the scripts for the shells.

kubectl runs the program ``kubectl_complete-hugetlb`` with the words after ``kubectl hugetlb``. The
last word is the word to complete. The answer has cobra's format: one candidate on each line, then a
colon and a number (cobra's directive) that tells the shell what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Final

from hugetlb_quota.plugin.words import FORMATS, KINDS, SHELLS

#: cobra's ShellCompDirectiveNoFileComp: do not offer file names.
_NO_FILES: Final = 4
#: cobra's ShellCompDirectiveDefault: offer file names.
_FILES: Final = 0
#: The longest time that reading names from a cluster may take, in seconds.
_PATIENCE: Final = 3.0

#: The commands, each with a summary.
COMMANDS: Final = {
    "tree": "the forest of quotas",
    "top": "pods or nodes, and their use",
    "files": "files that gone pods left",
    "who": "pods and files that fill a quota",
    "explain": "whether a pod would be admitted",
    "check": "whether all parts work",
    "uninstall": "remove the finalizer from all quotas",
    "completion": "the completion script of a shell",
}
_COMMON: Final = {
    "--namespace": "the namespace to show",
    "--all-namespaces": "show all namespaces",
    "--context": "a context of the kubeconfig",
    "--kubeconfig": "instead of $KUBECONFIG",
    "--output": "table, wide, json or yaml",
}
_OWN: Final = {
    "tree": {"--watch": "draw again at every change"},
    "files": {"--all": "also files of living pods and of the system"},
    "explain": {"--filename": "a manifest"},
    "uninstall": {"--yes": "do not ask", "--dry-run": "change nothing, only show the plan"},
}
#: The options that take a value, by each spelling.
_VALUES: Final = {
    "-n": "namespace",
    "--namespace": "namespace",
    "--context": "context",
    "--kubeconfig": "kubeconfig",
    "-o": "output",
    "--output": "output",
    "-f": "filename",
    "--filename": "filename",
}


def main() -> None:
    """The program that kubectl runs: ``kubectl_complete-hugetlb``."""
    sys.exit(complete(sys.argv[1:]))


def complete(words: Sequence[str]) -> int:
    """Print the completions of the last of ``words``. An error prints no completions."""
    completions, directive = candidates(words or [""])
    for name, summary in completions:
        print(f"{name}\t{summary}" if summary else name)
    print(f":{directive}")
    return 0


def candidates(words: Sequence[str]) -> tuple[list[tuple[str, str]], int]:
    """The completions of the last word, each with a summary, and cobra's directive."""
    *before, last = words
    command, positions, given = _read(before)
    option, equals, _ = last.partition("=")
    if equals and option in _VALUES:
        values, directive = _values(_VALUES[option], given)
        return _starting(((f"{option}={value}", "") for value, _ in values), last), directive
    if before and before[-1] in _VALUES:
        values, directive = _values(_VALUES[before[-1]], given)
        return _starting(values, last), directive
    if last.startswith("-"):
        options = {**_COMMON, **_OWN.get(command, {})}
        return _starting(options.items(), last), _NO_FILES
    if not command:
        return _starting(COMMANDS.items(), last), _NO_FILES
    return _starting(_arguments(command, positions, given), last), _NO_FILES


def command_of(words: Sequence[str]) -> str:
    """The command that the words of a command line name; "" if they name none."""
    return _read(words)[0]


def script(shell: str) -> str:
    """The script that completes the program ``kubectl-hugetlb`` in a shell."""
    return _SCRIPTS[shell]


def _read(words: Sequence[str]) -> tuple[str, list[str], dict[str, str]]:
    """The command in ``words``, its arguments, and the values of options."""
    plain: list[str] = []
    given: dict[str, str] = {}
    option_before = ""
    for word in words:
        option, equals, value = word.partition("=")
        if option_before:
            given[option_before], option_before = word, ""
        elif option in _VALUES and equals:
            given[_VALUES[option]] = value
        elif word in _VALUES:
            option_before = _VALUES[word]
        elif not word.startswith("-"):
            plain.append(word)
    return plain[0] if plain else "", plain[1:], given


def _arguments(
    command: str, positions: Sequence[str], given: dict[str, str]
) -> Iterable[tuple[str, str]]:
    if command in ("tree", "who") and not positions:
        return _from_cluster("quota", given)
    if command == "top" and not positions:
        return [("pods", ""), ("nodes", "")]
    if command == "completion" and not positions:
        return [(shell, "") for shell in SHELLS]
    if command == "explain" and not positions:
        return [(kind, "") for kind in dict.fromkeys(KINDS.values())]
    if command == "explain" and len(positions) == 1:
        return _from_cluster(KINDS.get(positions[0], positions[0]), given)
    return []


def _values(kind: str, given: dict[str, str]) -> tuple[Iterable[tuple[str, str]], int]:
    if kind in ("kubeconfig", "filename"):
        return [], _FILES
    if kind == "output":
        return [(name, "") for name in FORMATS], _NO_FILES
    return _from_cluster(kind, given), _NO_FILES


def _from_cluster(kind: str, given: dict[str, str]) -> list[tuple[str, str]]:
    """Names from the cluster or the kubeconfig; no names on an error or a timeout."""
    import asyncio
    import logging

    from hugetlb_quota.plugin import names

    logging.disable(logging.CRITICAL)

    async def read() -> list[str]:
        async with asyncio.timeout(_PATIENCE):
            return await names.names(kind, given)

    try:
        return [(name, "") for name in asyncio.run(read())]
    except Exception:  # on an error, offer no names
        return []
    finally:
        logging.disable(logging.NOTSET)


def _starting(offered: Iterable[tuple[str, str]], start: str) -> list[tuple[str, str]]:
    return [(name, summary) for name, summary in offered if name.startswith(start)]


_BASH: Final = """\
# Completion of kubectl-hugetlb for bash: source <(kubectl-hugetlb completion bash)
# For `kubectl hugetlb`, kubectl's own completion runs kubectl_complete-hugetlb.
_kubectl_hugetlb() {
    local answer directive IFS=$'\\n'
    answer=$("${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    directive=${answer##*:}
    answer=${answer%:*}
    if [ "$directive" = 0 ]; then
        COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
    else
        COMPREPLY=($(printf '%s' "$answer" | cut -f1))
    fi
}
complete -F _kubectl_hugetlb kubectl-hugetlb
"""
_ZSH: Final = """\
#compdef kubectl-hugetlb
# Completion of kubectl-hugetlb for zsh: source <(kubectl-hugetlb completion zsh)
# For `kubectl hugetlb`, kubectl's own completion runs kubectl_complete-hugetlb.
_kubectl_hugetlb() {
    local answer directive line
    local -a found
    answer=$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
    directive=${answer##*:}
    if [[ $directive == 0 ]]; then
        _files
        return
    fi
    for line in ${(f)"${answer%:*}"}; do
        found+=("${${line//:/\\\\:}/$'\\t'/:}")
    done
    _describe 'kubectl-hugetlb' found
}
compdef _kubectl_hugetlb kubectl-hugetlb
"""
_FISH: Final = """\
# Completion of kubectl-hugetlb for fish: kubectl-hugetlb completion fish | source
# For `kubectl hugetlb`, kubectl's own completion runs kubectl_complete-hugetlb.
function __kubectl_hugetlb
    set -l words (commandline -opc) (commandline -ct)
    set -l answer ($words[1] __complete $words[2..-1] 2>/dev/null)
    if test "$answer[-1]" = ":0"
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $answer[1..-2]
    end
end
complete -c kubectl-hugetlb -f -a '(__kubectl_hugetlb)'
"""
_SCRIPTS: Final = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
