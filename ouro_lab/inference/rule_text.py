"""An exit rule from a command line: `QExit(q=0.5)`."""

import ast

from ouro_lab.inference import exits
from ouro_lab.inference.exits import ExitRule, ThresholdRule

RULES = {name: getattr(exits, name) for name in exits.__all__ if name not in ("ExitRule", "ThresholdRule")}
RULES = {name: rule for name, rule in RULES.items() if isinstance(rule, type) and issubclass(rule, ThresholdRule)}


def parse_rule(text: str) -> ExitRule:
    """The rule that `text` calls by name with plain values; nothing is executed.

    Raises:
        ValueError: one line saying what is wrong and what would be valid.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError
        positional = [ast.literal_eval(value) for value in call.args]
        named = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
    except (SyntaxError, ValueError):
        raise ValueError(f"rule = {text!r}: must be a call such as QExit(q=0.5)") from None
    if call.func.id not in RULES:
        raise ValueError(f"rule = {text!r}: unknown; must be one of {', '.join(RULES)}")
    try:
        return RULES[call.func.id](*positional, **named)
    except TypeError as error:
        raise ValueError(f"rule = {text!r}: {error}") from None
