"""Completion: kubectl's protocol, and the scripts for the shells.

kubectl runs the program ``kubectl_complete-hugetlb`` with the words after ``kubectl hugetlb``,
the last of them the one that is completed. The answer is cobra's: a candidate a line, then a
colon and a number that says what the shell is to make of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Final

from hugetlb_quota.plugin import cli

#: cobra's ShellCompDirectiveNoFileComp: these are all candidates, not files too.
_NO_FILES: Final = 4
#: cobra's ShellCompDirectiveDefault: file names.
_FILES: Final = 0
#: How long a cluster may be asked for names, in seconds.
_PATIENCE: Final = 3.0

_COMMANDS: Final = {
    "tree": "the forest of quotas",
    "top": "pods or nodes by use",
    "files": "files that pods left",
    "who": "what fills a quota",
    "explain": "whether a pod would be admitted",
    "check": "whether all is well",
    "uninstall": "take the finalizer off all quotas",
    "completion": "the script of a shell",
}
_COMMON: Final = {
    "--namespace": "only of this namespace",
    "--all-namespaces": "of all namespaces",
    "--context": "a context of the kubeconfig",
    "--kubeconfig": "in the place of $KUBECONFIG",
    "--output": "table, wide, json or yaml",
}
_OWN: Final = {
    "tree": {"--watch": "draw anew at every change"},
    "files": {"--all": "files of living pods and the system too"},
    "explain": {"--filename": "a manifest"},
    "uninstall": {"--yes": "do not ask", "--dry-run": "only say what would be done"},
}
#: The options that take a value, by each of their spellings.
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
    """The program that kubectl asks: ``kubectl_complete-hugetlb``."""
    sys.exit(complete(sys.argv[1:]))


def complete(words: Sequence[str]) -> int:
    """Print what the last of ``words`` may become; never an error, at worst nothing."""
    found, directive = candidates(words or [""])
    for name, summary in found:
        print(f"{name}\t{summary}" if summary else name)
    print(f":{directive}")
    return 0


def candidates(words: Sequence[str]) -> tuple[list[tuple[str, str]], int]:
    """What the last word may become, each with a summary, and cobra's directive."""
    *before, last = words
    command, positions, given = _read(before)
    option, equals, _ = last.partition("=")
    if equals and option in _VALUES:
        found, directive = _values(_VALUES[option], given)
        return _starting(((f"{option}={name}", "") for name, _ in found), last), directive
    if before and before[-1] in _VALUES:
        found, directive = _values(_VALUES[before[-1]], given)
        return _starting(found, last), directive
    if last.startswith("-"):
        options = {**_COMMON, **_OWN.get(command, {})}
        return _starting(options.items(), last), _NO_FILES
    if not command:
        return _starting(_COMMANDS.items(), last), _NO_FILES
    return _starting(_arguments(command, positions, given), last), _NO_FILES


def script(shell: str) -> str:
    """The script by which a shell completes the program ``kubectl-hugetlb`` itself."""
    return _SCRIPTS[shell]


def _read(words: Sequence[str]) -> tuple[str, list[str], dict[str, str]]:
    """The command in ``words``, its arguments, and the values of options."""
    plain: list[str] = []
    given: dict[str, str] = {}
    waiting = ""
    for word in words:
        option, equals, value = word.partition("=")
        if waiting:
            given[waiting], waiting = word, ""
        elif option in _VALUES and equals:
            given[_VALUES[option]] = value
        elif word in _VALUES:
            waiting = _VALUES[word]
        elif not word.startswith("-"):
            plain.append(word)
    return plain[0] if plain else "", plain[1:], given


def _arguments(
    command: str, positions: Sequence[str], given: dict[str, str]
) -> Iterable[tuple[str, str]]:
    if command in ("tree", "who") and not positions:
        return _of_cluster("quota", given)
    if command == "top" and not positions:
        return [("pods", ""), ("nodes", "")]
    if command == "completion" and not positions:
        return [(shell, "") for shell in cli.SHELLS]
    if command == "explain" and not positions:
        return [(kind, "") for kind in dict.fromkeys(cli.KINDS.values())]
    if command == "explain" and len(positions) == 1:
        return _of_cluster(cli.KINDS.get(positions[0], positions[0]), given)
    return []


def _values(kind: str, given: dict[str, str]) -> tuple[Iterable[tuple[str, str]], int]:
    if kind in ("kubeconfig", "filename"):
        return [], _FILES
    if kind == "output":
        return [(name, "") for name in cli.FORMATS], _NO_FILES
    return _of_cluster(kind, given), _NO_FILES


def _of_cluster(kind: str, given: dict[str, str]) -> list[tuple[str, str]]:
    """Names out of the cluster or the kubeconfig; none when they can't be had in time."""
    import asyncio
    import logging

    from hugetlb_quota.plugin import names

    logging.disable(logging.CRITICAL)

    async def ask() -> list[str]:
        async with asyncio.timeout(_PATIENCE):
            return await names.names(kind, given)

    try:
        return [(name, "") for name in asyncio.run(ask())]
    except Exception:  # a shell shows no errors, only fewer names
        return []
    finally:
        logging.disable(logging.NOTSET)


def _starting(found: Iterable[tuple[str, str]], start: str) -> list[tuple[str, str]]:
    return [(name, summary) for name, summary in found if name.startswith(start)]


_BASH: Final = """\
# Completion of kubectl-hugetlb for bash: source <(kubectl-hugetlb completion bash)
# `kubectl hugetlb` is completed by kubectl itself, by means of kubectl_complete-hugetlb.
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
# `kubectl hugetlb` is completed by kubectl itself, by means of kubectl_complete-hugetlb.
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
# `kubectl hugetlb` is completed by kubectl itself, by means of kubectl_complete-hugetlb.
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
