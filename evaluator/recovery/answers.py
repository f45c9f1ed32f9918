"""What decides about answers: the number that one ends in, and whether a rewrite may take its reference's place."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from evaluator.recovery.examples import Example

MARK = "####"  # comes before the final answer, as in GSM8K
LAST_LINE = re.compile(rf"{MARK}[ \t*$]*[-−]?\.?\d[^\n]*\n")  # a whole line with the final answer
CALCULATION = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")  # GSM8K's notes for a calculator, which no one would say
Reason = Literal["wrong_answer", "unparsable", "no_working", "wrong_working", "unfinished", "empty", "echo", "too_long"]

# All that is written in digits without a gap, so that of 1/2, 3:30 or 1,2,3 no part is taken for the number.
_NUMERAL = re.compile(r"(?:(?<![\w)\]])[-−][$€£]?)?\.?\d(?:[\d.,/:^]*\d)?")
_PLAIN = re.compile(r"([-−]?)[$€£]?(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d+))?")
_AFTER_MARK = re.compile(rf"(?:the |final |answer|is\b|\\boxed|[^\w\n.−-])*{_NUMERAL.pattern}", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{([^\n]*)")
_ANSWER_IS = re.compile(r"\banswer\W{0,3}(?:is\b|:|=)\s*([^\n]*)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_SUM_BEFORE = re.compile(r"(?<![\w.)])[\d(][\d.,()\s]*[-+*/][\d.,()\s+*/-]*$")
_SUM_AFTER = re.compile(r"\s*[\d(](?:[\d.,()\s+*/-]*[\d)])?(?![\w%])")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LEAST_ECHO = 40  # letters whose repetition is no chance


def final_answer(text: str) -> str | None:
    """Return the number that an answer ends in, or None where there is none or it is not sure which.

    Where there is a mark (####) only what follows the last one counts, and it must be a number at once. Without a
    mark it is the number in the last \\boxed{} or else after the last "answer is", and else the last number of all.
    A place with several numbers counts where they are the two sides of an equation. Numbers are compared as text:
    without separators, signs of currency and per cent, and zeros that say nothing.

    Source: arXiv 2110.14168 (GSM8K), whose grader takes what follows the mark.
    """
    if MARK in text:
        line = text.rpartition(MARK)[2].lstrip().partition("\n")[0]
        return _only_number(line) if _AFTER_MARK.match(line) else None
    for pattern in (_BOXED, _ANSWER_IS):
        found = pattern.findall(text)
        scope = found[-1] if found else ""
        scope = scope.rpartition("}")[0] if pattern is _BOXED else _SENTENCE_END.split(scope)[0]
        if _NUMERAL.search(scope):
            return _only_number(scope)
    numbers = _numbers_in(text)
    return numbers[-1] if numbers else None


def _numbers_in(text: str) -> list[str | None]:
    """Return all numbers of a text, normalised; None for what is written in digits but is no single number."""
    return [_normalised(numeral) for numeral in _NUMERAL.findall(text)]


def _only_number(text: str) -> str | None:
    """Return the one number of a text, or of what follows its last equals sign."""
    for part in (text, text.rpartition("=")[2]):
        numbers = set(_numbers_in(part))
        if len(numbers) == 1:
            return numbers.pop()
    return None


def _normalised(numeral: str) -> str | None:
    parts = _PLAIN.fullmatch(numeral)
    if parts is None:
        return None
    sign, whole, fraction = (part or "" for part in parts.groups())
    whole, fraction = whole.replace(",", "").lstrip("0") or "0", fraction.rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if sign and number != "0" else number


def judge(example: Example, text: str, ended: bool, check_working: bool) -> tuple[Example, Reason | None]:
    """Return the example with the rewrite in its form, or as it is and why the rewrite is not kept.

    Args:
        example: the instruction with its reference answer.
        text: the rewrite, as the model wrote it.
        ended: whether the model had ended it.
        check_working: whether the way to a final number is looked at.
    """
    reference, mark, end = example.answer.rpartition(MARK)
    if not mark:
        reference = example.answer
    elif found := LAST_LINE.search(text):
        text, ended = text[: found.end()], True
    body = text.strip()
    if mark and MARK in body:
        body = body.rpartition(MARK)[0].rstrip(" \t\r\n*#")
    reason: Reason | None = None
    if not re.search(r"[^\W\d_]", body):
        reason = "empty"
    elif not ended:
        reason = "unfinished"
    elif mark:
        reason = _wrong_ending(example.answer, text)
        if reason is None and check_working:
            reason = _wrong_working(body, reference, final_answer(example.answer))
    if reason is None and _is_echo(body, reference, example.instruction):
        reason = "echo"
    if reason is not None:
        return example, reason
    return Example(example.instruction, f"{body}\n{MARK}{end}" if mark else body), None


def _wrong_ending(reference: str, text: str) -> Reason | None:
    """Return what is wrong with a rewrite's final answer, a number or else the words after its mark."""
    right, own = final_answer(reference), final_answer(text)
    if right is None:
        right, own = (
            " ".join(answer.rpartition(MARK)[2].casefold().split()) if MARK in answer else None
            for answer in (reference, text)
        )
    return "unparsable" if own is None else None if own == right else "wrong_answer"


def _wrong_working(body: str, reference: str, right: str | None) -> Reason | None:
    """Return what is wrong with the way to a final answer: it must be shown, arrive there, and be right in its sums."""
    if right is None:
        return None
    own, theirs = set(_numbers_in(body)), set(_numbers_in(reference))
    if right not in own or (theirs - {right} and not own - {right}):
        return "no_working"
    return None if all(map(_holds, body.splitlines())) else "wrong_working"


def _holds(line: str) -> bool:
    """Return whether the equations of plain numbers in a line are true, to the last digit that they give."""
    plain = re.sub(r"(?<=\d)\s*[x×]\s*(?=[\d(])", "*", line.replace("$", "").replace("÷", "/"))
    for left, right in pairwise(plain.split("=")):
        own, given = _SUM_BEFORE.search(left), _SUM_AFTER.match(right)
        if not (own and given) or left[: own.start()].rstrip().endswith(("+", "-", "*", "/", "x", "×")):
            continue  # of a sum with words between its numbers, no part is judged
        found, said = _value(own[0]), _value(given[0])
        digits = len(given[0].strip().partition(".")[2])
        if found is not None and said is not None and abs(found - said) >= Fraction(1, 10**digits):
            return False
    return True


def _value(text: str) -> Fraction | None:
    """Return what a sum of plain numbers is; None of anything else."""

    def of(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int() | float() as number):
                return Fraction(str(number))
            case ast.BinOp(left, sign, right) if type(sign) in _OPERATORS:
                return _OPERATORS[type(sign)](of(left), of(right))
        raise ValueError

    try:
        return of(ast.parse(re.sub(r"(?<=\d),(?=\d{3})", "", text).strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _is_echo(body: str, reference: str, instruction: str) -> bool:
    """Return whether an answer, without its final number, only repeats the reference or the instruction.

    Letters of either case, spaces, stops and notes for a calculator make no difference.
    """
    own, theirs, asked = (
        re.sub(r"[\s.,;:!]", "", CALCULATION.sub("", text).casefold()) for text in (body, reference, instruction)
    )
    found_in = ((own, theirs), (asked, own))
    return own in (theirs, asked) or any(len(part) >= _LEAST_ECHO and part in whole for part, whole in found_in)
