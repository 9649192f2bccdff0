"""Chat data is read as prompts where it holds one question, and refused by row where it does not."""

import json

import pytest

from interp.data.prompts import read_prompts
from interp.errors import PromptFileError

ASKED = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "so."},
]
SHARED = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so."}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "wh"}, {"type": "text", "text": "y?"}]}]


@pytest.mark.parametrize(
    ("turns", "system", "response"), [(ASKED, "be brief", "so."), (SHARED, None, "so."), (PARTS, None, None)]
)
@pytest.mark.parametrize("column", ["messages", "Conversations"])
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_one_question_is_a_prompt(tmp_path, turns, system, response, column, form):
    path = tmp_path / f"chat.{form}"
    if form == "jsonl":
        path.write_text(json.dumps({column: turns, "id": "a", "lang": "en"}))
    else:
        cell = json.dumps(turns).replace('"', '""')
        path.write_text(f'{column},id,lang\n"{cell}",a,en\n')
    (prompt,) = read_prompts(path)
    assert (prompt.text, prompt.system, prompt.response, prompt.id) == ("why?", system, response, "a")
    assert prompt.meta == {"lang": "en"}


def test_a_column_of_requests_is_taken_first(tmp_path):
    path = tmp_path / "both.jsonl"
    path.write_text(json.dumps({"prompt": "what?", "messages": ASKED}))
    (prompt,) = read_prompts(path)
    assert prompt.text == "what?" and prompt.meta["messages"] == ASKED
    assert read_prompts(path, column="messages")[0].text == "why?"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [*ASKED, ASKED[1]]}, "row 2: a conversation of 2 questions and 1 answers"),
        ({"messages": ASKED[2:]}, "row 2: a conversation of 0 questions"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "row 2: a turn of the conversation has the role 'tool'",
        ),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "row 2: the user turn of the conversation is of type int",
        ),
        ({"messages": ["why?"]}, "row 2: a turn of the conversation is of type str"),
        ({"messages": "why?"}, "row 2: the conversation is a text that is not JSON"),
        ({"messages": None}, "row 2: the conversation is missing"),
        (
            {"messages": ASKED, "response": "no."},
            "row 2: `response` stands in a column and in the conversation",
        ),
    ],
)
def test_what_is_no_question_is_named_by_its_row(tmp_path, row, said):
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, ({"messages": ASKED}, row))))
    with pytest.raises(PromptFileError, match=said):
        read_prompts(path)
