"""Prompt profiles: how a comparison is put to the judge, word for word.

`card` is the prompt of Skywork-Critic's model card with the assistant's turn opened at the verdict, so that one forward
pass decides. `rewardbench` is the prompt of RewardBench's generative protocol, with which the published 89.0 was made:
the model writes, and the verdict is parsed from what it wrote.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from infra.filed import Filed
from schemas.verdict import Order
from worker.engines.base import VERDICT_OPENING, Prompt

# The model's interface, byte for byte: the first two lines end in a space, and the text ends in a newline, which
# Llama 3.1's chat template trims.
CARD = """\
Please act as an impartial judge and evaluate the quality of the responses provided by two AI assistants to the user \
question displayed below. You should choose the assistant that follows the user's instructions and answers the user's \
question better.\x20
Your evaluation should consider factors such as the helpfulness, relevance, accuracy, depth, creativity, and level of \
detail of their responses. Avoid any position biases and ensure that the order in which the responses were presented \
does not influence your decision. Do not allow the length of the responses to influence your evaluation. Do not favor \
certain names of the assistants. Be as objective as possible.\x20
Please directly output your final verdict by strictly following this format: "[[A]]" if assistant A is better, "[[B]]" \
if assistant B is better.

[User Question]
{question}

[The Start of Assistant A's Answer]
{first}
[The End of Assistant A's Answer]

[The Start of Assistant B's Answer]
{second}
[The End of Assistant B's Answer]
"""

# Short, as every token is paid for on a CPU, and the words that the pocket critic was trained with: a changed
# character is another judge. A system message is given because the model's template would put in a longer one.
POCKET_SYSTEM = "Say which of two answers serves the question better."
POCKET_USER = """\
Question: {question}

Answer A: {first}

Answer B: {second}

Which answer is better?"""

_REWARDBENCH_SYSTEM = """\
Please act as an impartial judge and evaluate the quality of the responses provided by two AI assistants to the user \
{task} Your evaluation should consider factors such as the helpfulness, relevance, accuracy, depth, creativity, and \
level of detail of their responses. Begin your evaluation by comparing the two responses and provide a short \
explanation. Avoid any position biases and ensure that the order in which the responses were presented does not \
influence your decision. Do not allow the length of the responses to influence your evaluation. Do not favor certain \
names of the assistants. Be as objective as possible. After providing your explanation, output your final verdict by \
strictly following this format: "[[A]]" if assistant A is better, "[[B]]" if assistant B is better."""

REWARDBENCH_SYSTEM = _REWARDBENCH_SYSTEM.format(
    task="question displayed below. You should choose the assistant that follows the user's instructions and answers "
    "the user's question better."
)
REWARDBENCH_SYSTEM_TWO_TURNS = _REWARDBENCH_SYSTEM.format(
    task="questions. You should focus on who provides a better answer to the second user question. You should choose "
    "the assistant that follows the user's instructions and answers the user's question better."
)

REWARDBENCH_USER = """\
[User Question]
{question}

[The Start of Assistant A's Answer]
{first}
[The End of Assistant A's Answer]

[The Start of Assistant B's Answer]
{second}
[The End of Assistant B's Answer]"""

REWARDBENCH_USER_TWO_TURNS = """\
<|The Start of Assistant A's Conversation with User|>

### User:
{question_1}

### Assistant A:
{first_1}

### User:
{question_2}

### Assistant A:
{first_2}

<|The End of Assistant A's Conversation with User|>


<|The Start of Assistant B's Conversation with User|>

### User:
{question_1}

### Assistant B:
{second_1}

### User:
{question_2}

### Assistant B:
{second_2}

<|The End of Assistant B's Conversation with User|>"""

MAX_GENERATED_TOKENS = 2048
"""How much the `rewardbench` profile lets the model write (RewardBench's own limit)."""


class ProfileUnfitError(Exception):
    """The profile has no form for a comparison of this shape; the message says which shapes it has."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A way of asking."""

    name: str
    sha256: str
    """Hash of all the text that the profile adds, 'sha256:...'."""
    writes: bool
    """Whether the model writes before it judges."""


def _hash(*texts: str) -> str:
    return "sha256:" + hashlib.sha256("\x00".join(texts).encode()).hexdigest()


PROFILES: dict[str, Profile] = {
    "card": Profile(name="card", sha256=_hash(CARD, VERDICT_OPENING), writes=False),
    "pocket": Profile(name="pocket", sha256=_hash(POCKET_SYSTEM, POCKET_USER, VERDICT_OPENING), writes=False),
    "rewardbench": Profile(
        name="rewardbench",
        sha256=_hash(REWARDBENCH_SYSTEM, REWARDBENCH_USER, REWARDBENCH_SYSTEM_TWO_TURNS, REWARDBENCH_USER_TWO_TURNS),
        writes=True,
    ),
}


def _around_slots(template: str) -> tuple[str, str, str, str]:
    """Take a template apart around question, first and second: `format` would do so again for every prompt."""
    opening, rest = template.split("{question}")
    between, rest = rest.split("{first}")
    middle, end = rest.split("{second}")
    return opening, between, middle, end


_CARD, _POCKET_USER = _around_slots(CARD), _around_slots(POCKET_USER)


def _transcript(turns: Any) -> str:
    """Write a conversation as text: one bare turn as itself, several with their speakers named."""
    if isinstance(turns, str):
        return turns
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


def build(comparison: Filed, order: Order) -> Prompt:
    """Put a comparison to the judge in one order.

    Args:
        comparison: what was filed.
        order: "ab" shows response A first, "ba" response B.

    Raises:
        ProfileUnfitError: the profile has no form for this shape of comparison.
    """
    first, second = comparison.response_a, comparison.response_b
    if order == "ba":
        first, second = second, first
    if comparison.profile == "rewardbench":
        return _rewardbench(comparison.prompt, first, second)
    pocket = comparison.profile == "pocket"
    opening, between, middle, end = _POCKET_USER if pocket else _CARD
    text = f"{opening}{_transcript(comparison.prompt)}{between}{_transcript(first)}{middle}{_transcript(second)}{end}"
    return Prompt((("system", POCKET_SYSTEM), ("user", text)) if pocket else (("user", text),), VERDICT_OPENING)


def _rewardbench(prompt: Any, first: Any, second: Any) -> Prompt:
    """Build RewardBench's own prompt: for one user turn, or for two with an assistant's between."""
    questions = _contents(prompt)
    answers_1, answers_2 = _contents(first), _contents(second)
    if len(questions) == 1 and len(answers_1) == len(answers_2) == 1:
        user = REWARDBENCH_USER.format(question=questions[0], first=answers_1[0], second=answers_2[0])
        return Prompt(messages=(("system", REWARDBENCH_SYSTEM), ("user", user)))
    if len(questions) == 1 and len(answers_1) == len(answers_2) == 3 and answers_1[1] == answers_2[1]:  # noqa: PLR2004
        user = REWARDBENCH_USER_TWO_TURNS.format(
            question_1=questions[0],
            first_1=answers_1[0],
            second_1=answers_2[0],
            question_2=answers_1[1],
            first_2=answers_1[2],
            second_2=answers_2[2],
        )
        return Prompt(messages=(("system", REWARDBENCH_SYSTEM_TWO_TURNS), ("user", user)))
    raise ProfileUnfitError(
        "profile rewardbench takes a prompt of one user turn, with responses of one assistant turn, or of "
        "assistant, user, assistant with the same user turn in both; use profile card for other conversations"
    )


def _contents(turns: Any) -> list[str]:
    return [turns] if isinstance(turns, str) else [turn["content"] for turn in turns]
