"""What decides about answers: final numbers, sums on the way to them, and why a rewrite is not kept."""

import pytest

from evaluator.recovery import answers
from evaluator.recovery.answers import final_answer, judge
from evaluator.recovery.examples import Example, read_examples


def test_gsm8k_has_a_final_answer_in_every_row(data):
    examples = read_examples(str(data / "tasks" / "gsm8k" / "train.jsonl"))
    assert len(examples) == 7473
    assert examples[0].instruction.startswith("Natalia sold clips to 48 of her friends")
    found = [final_answer(example.answer) for example in examples]
    said = [example.answer.split("#### ")[1].replace(",", "") for example in examples]
    assert [
        answer for answer, own in zip(found, said, strict=True) if answer is None or float(answer) != float(own)
    ] == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = 24\n#### 72", "72"),
        ("#### 5\nNo, more.\n#### 72", "72"),  # the last counts
        ("#### 1,080.00", "1080"),
        ("#### $-12.50 in all.", "-12.5"),
        ("#### -$5", "-5"),
        ("####: **42**", "42"),
        ("#### The final answer is \\boxed{42}", "42"),
        ("#### 5 + 3 = 8", "8"),
        ("#### 1 + 2 + 3 = 3 + 3 = 6", "6"),
        ("#### 20%", "20"),
        ("#### .50", "0.5"),
        ("#### -0", "0"),
        ("#### 007", "7"),
        ("####\n42", "42"),
        ("It is 42.\n#### unknown", None),
        ("It is 42.\n#### Step 3: add them", None),
        ("#### 5 or 6", None),
        ("#### 1/2", None),
        ("#### 3:30", None),
        ("#### 1,2,3", None),
        ("####", None),
        ("So \\boxed{42} of 50.", "42"),
        ("So $\\boxed{\\frac{1}{2}}$", None),
        ("The answer is 42. She had 50.", "42"),
        ("Answer: 12 + 30 = $42.", "42"),
        ("**Answer:** 42", "42"),
        ("The answer is that 5 of 9 are left.", None),
        ("She sold 72 clips.", "72"),
        ("In 2005, 10-5 is 5", "5"),
        ("She had 5 and ate 1/2.", None),
        ("The answer is as follows. She has 7", "7"),
        ("none at all", None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


REFERENCE = "She had 10 in the old bush behind the house and cut 4 of them.\n10 - 4 = <<10-4=6>>6\n#### 6"
ASKED = "She had ten canes and cut some of them last June. How many were left?"
JUDGED = {
    "its own last line in another form": ("Of 10 she cut 4: 10 - 4 = 6.\n**#### $6.00 canes**", None),
    "the number without a mark": ("Of 10 she cut 4, which leaves 6.", None),
    "more after the answer": ("Of 10 she cut 4: 6.\n#### 6\nQuestion: and 7?\n#### 7", None),
    "units inside of a sum": ("Of 10 canes - 4 = 6 are left, 3 canes * 2 = 6.\n#### 6", None),
    "another number": ("10 - 3 = 7\nSo 7 are left.\n#### 7", "wrong_answer"),
    "two numbers": ("Of 10 she cut 4.\n#### 6 or 7", "unparsable"),
    "no number": ("She cut some of them.", "unparsable"),
    "only the answer": ("The answer is: 6\n#### 6", "no_working"),
    "a way to elsewhere": ("She had 10 and 4, so 8 are left.\n#### 6", "no_working"),
    "a sum that is false": ("10 - 2 = 6\nSo 6 are left.\n#### 6", "wrong_working"),
    "a second side that is false": ("10 - 4 = 3 x 3 = 9, so 6 are left.\n#### 6", "wrong_working"),
    "no words": ("10 - 4 = 6\n#### 6", "empty"),
    "nothing": (" \n", "empty"),
    "the reference": ("She had 10 in the old bush behind the house and cut 4 of them. 10-4 = 6", "echo"),
    "a part of the reference": ("10 in the old bush behind the house and cut 4 of them.\n10 - 4 = 6.", "echo"),
    "the question first": (f"{ASKED} Of 10 she cut 4: 6.\n#### 6", "echo"),
}


@pytest.mark.parametrize("kind", JUDGED)
def test_a_rewrite_is_judged(kind):
    text, reason = JUDGED[kind]
    example = Example(ASKED, REFERENCE)
    found, own = judge(example, text, True, True)
    assert own == reason
    if reason:
        assert found == example
    else:
        assert found.instruction == ASKED
        body, _, end = found.answer.partition("\n#### ")
        assert end == "6"
        assert text.startswith(body)
        assert len(body) > 15


def test_the_paper_looks_at_the_number_only():
    for kind in ("only the answer", "a way to elsewhere", "a sum that is false"):
        text, _ = JUDGED[kind]
        found, reason = judge(Example(ASKED, REFERENCE), text, True, False)
        assert reason is None
        assert found.answer.endswith("\n#### 6")


def test_a_final_answer_in_words_is_compared_as_it_is():
    example = Example(ASKED, "It blooms in summer.\n#### The rose")
    assert judge(example, "Summer is its time.\n####  the rose", True, True) == (
        Example(ASKED, "Summer is its time.\n#### The rose"),
        None,
    )
    assert judge(example, "Summer is its time.\n#### the oak", True, True) == (example, "wrong_answer")
    assert judge(example, "Summer is its time.", True, True) == (example, "unparsable")


@pytest.mark.parametrize(
    ("line", "holds"),
    [
        ("5 + 3 = 8", True),
        ("5 + 3 = 9", False),
        ("$1,000 x 2 = $2,000.", True),
        ("(2+3)*4 ÷ 2 = 10", True),
        ("10/3 = 3.33", True),
        ("10/3 = 3.5", False),
        ("5*8 = 40*1 = 41", False),
        ("3x + 5 = 20", True),  # what is not a sum of plain numbers is not judged
        ("7 apples + 5 = 9", True),
        ("1/5 = 20%", True),
        ("1/0 = 5", True),
        ("9**9**9**9 = 3", True),
        ("no sum", True),
    ],
)
def test_equations(line, holds):
    assert answers._holds(line) == holds
