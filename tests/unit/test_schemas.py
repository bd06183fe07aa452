"""Ids, requests and the words in which a wrong request is told what is wrong with it."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import ids
from schemas.batch import BatchRequest, Window
from schemas.callback import EndpointRequest, ReplayRequest, Rotation
from schemas.comparison import ComparisonRequest, is_plain
from schemas.ids import SINGLE_LINE, ComparisonKey, comparison_id, new_filing_id, parse_comparison_id
from schemas.lines import read_line
from schemas.problems import NOT_FOUND, FieldError, Problem, field_path, invalid_request

GOOD = {"prompt": "What is the capital of Australia?", "response_a": "Sydney.", "response_b": "Canberra."}
USER = {"role": "user", "content": "Why?"}
ASSISTANT = {"role": "assistant", "content": "Because."}
ODD = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["", "\0", "\ud800", "both", "x" * 256, "x" * 257]),
    st.none(),
    st.integers(),
    st.just([USER]),
)
"""What a field may hold that anybody sends."""
MANY = {str(number): 0 for number in range(100_000)}


def request(**changes: Any) -> ComparisonRequest:
    """Read a request as it comes over the wire, with some fields changed; None takes a field away."""
    fields = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return ComparisonRequest.model_validate(json.loads(json.dumps(fields)))


def problem_of(fields: Any) -> Problem:
    """Read a request that must be refused, and put the refusal in our words."""
    with pytest.raises(ValidationError) as refusal:
        ComparisonRequest.model_validate(fields)
    return invalid_request(refusal.value.errors(include_url=False, include_input=False))


def passes(read: Callable[[], object]) -> bool:
    """Tell whether something is read without complaint."""
    try:
        read()
    except ValueError:
        return False
    return True


class TestIds:
    @given(filing=st.uuids(), line=st.integers(0, 999_999_999))
    def test_they_come_back_as_they_went(self, filing, line):
        """Reading a spelt id gives the key that it was spelt from."""
        key = ComparisonKey(filing, line)
        assert parse_comparison_id(comparison_id(key)) == key

    def test_a_single_comparison_is_named_by_its_filing_alone(self):
        """Line 0 is not spelt; lines of a batch are."""
        filing = uuid.UUID("0199e0a1b2c37d4e8f90a1b2c3d4e5f6")
        assert comparison_id(ComparisonKey(filing, SINGLE_LINE)) == "cmp_0199e0a1b2c37d4e8f90a1b2c3d4e5f6"
        assert comparison_id(ComparisonKey(filing, 17)) == "cmp_0199e0a1b2c37d4e8f90a1b2c3d4e5f6_17"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "cmp_",
            "0199e0a1b2c37d4e8f90a1b2c3d4e5f6",
            "cmp_0199e0a1b2c37d4e8f90a1b2c3d4e5f",
            "cmp_0199E0A1B2C37D4E8F90A1B2C3D4E5F6",
            "cmp_0199e0a1-b2c3-7d4e-8f90-a1b2c3d4e5f6",
            "cmp_0199e0a1b2c37d4e8f90a1b2c3d4e5f6_",
            "cmp_0199e0a1b2c37d4e8f90a1b2c3d4e5f6_0",
            "cmp_0199e0a1b2c37d4e8f90a1b2c3d4e5f6_01",
            "cmp_0199e0a1b2c37d4e8f90a1b2c3d4e5f6_-1",
            "cmp_0199e0a1b2c37d4e8f90a1b2c3d4e5f6_1234567890",
            "cmp_0199e0a1b2c37d4e8f90a1b2c3d4e5f6_\u0661",
            "cmp_0199e0a1b2c37d4e8f90a1b2c3d4e5f6\n",
            " cmp_0199e0a1b2c37d4e8f90a1b2c3d4e5f6",
        ],
    )
    def test_anything_else_is_no_id(self, text):
        """There is one way to spell an id, and all others name nothing."""
        assert parse_comparison_id(text) is None

    def test_a_new_id_is_a_uuid_of_version_7(self):
        """Version and variant stand where RFC 9562 wants them."""
        for _ in range(100):
            made = new_filing_id()
            assert made.version == 7
            assert made.variant == uuid.RFC_4122

    def test_new_ids_differ(self):
        """Ids made within the same millisecond are told apart by their randomness."""
        assert len({new_filing_id() for _ in range(1000)}) == 1000

    def test_it_begins_with_the_time(self, monkeypatch):
        """The first 48 bits are milliseconds since 1970."""
        monkeypatch.setattr(ids.time, "time_ns", lambda: 0x0199_E0A1_B2C3 * 1_000_000 + 999_999)
        assert new_filing_id().hex.startswith("0199e0a1b2c37")

    @pytest.mark.parametrize("milliseconds", [0, 1, 2**32, 1_760_000_000_000, 2**48 - 2])
    def test_ids_sort_by_time(self, monkeypatch, milliseconds):
        """Of two ids the later sorts behind, whether as a number or as text, whatever their randomness."""
        monkeypatch.setattr(ids.time, "time_ns", lambda: milliseconds * 1_000_000)
        monkeypatch.setattr(ids.os, "urandom", lambda size: b"\xff" * size)
        earlier = new_filing_id()
        monkeypatch.setattr(ids.time, "time_ns", lambda: (milliseconds + 1) * 1_000_000)
        monkeypatch.setattr(ids.os, "urandom", lambda size: b"\x00" * size)
        later = new_filing_id()
        assert earlier < later
        assert str(earlier) < str(later)


class TestAGoodRequest:
    def test_three_texts_are_enough(self):
        """Everything else has a default: both orders, the card, no ties."""
        made = request()
        assert (made.order, made.profile, made.tie_margin) == ("both", "own", None)
        assert (made.custom_id, made.metadata) == (None, {})

    @pytest.mark.parametrize(
        "changes",
        [
            {"response_a": ""},
            {"prompt": [USER]},
            {"prompt": [{"role": "system", "content": "Be brief."}, USER, ASSISTANT, USER]},
            {"response_b": [ASSISTANT]},
            {"response_b": [ASSISTANT, USER, {"role": "assistant", "content": ""}]},
            {"order": "ba", "profile": "rewardbench"},
            {"tie_margin": 0},
            {"tie_margin": 0.499},
            {"custom_id": "x" * 256},
            {"metadata": {f"key-{number}": "x" * 512 for number in range(16)}},
            {"prompt": "你好 😀 \u2028 \x01 </s> <|eot_id|>"},
        ],
    )
    def test_all_that_is_allowed_is_taken(self, changes):
        """Every form and every limit that is documented is accepted as it is, and given back so."""
        stored = request(**changes).model_dump(mode="json")
        assert {name: stored[name] for name in changes} == changes


class TestAPlainRequest:
    @pytest.mark.parametrize("name", [{}, {"custom_id": "x"}, {"custom_id": "x" * 256}])
    def test_three_texts_are_plain_with_a_name_or_without(self, name):
        """What most lines of large files are is told without a look at each of their texts."""
        assert is_plain(GOOD | name)
        assert is_plain(GOOD | name | {"response_a": ""})

    @given(
        fields=st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ["prompt", "response_a", "response_b", "custom_id", "order", "metadata", "callback_url", "label"], ODD
            ),
        )
    )
    def test_it_is_a_good_one_whatever_it_says(self, fields):
        """What is plain passes where each text is looked at, but for NUL, and half a pair, which no line has."""
        if is_plain(fields) and not any({"\0", "\ud800"} & {*text} for text in fields.values()):
            ComparisonRequest.model_validate(fields)

    @given(
        fields=st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(["prompt", "response_a", "response_b", "custom_id", "order", "metadata"], ODD),
        )
    )
    def test_a_line_passes_where_a_request_would(self, fields):
        """Of a plain line nothing passes that is refused where each text is looked at, NUL and half a pair neither."""
        assert passes(lambda: read_line(json.dumps(fields).encode())) == passes(
            lambda: ComparisonRequest.model_validate(fields)
        )

    @pytest.mark.parametrize("field", [*GOOD, "custom_id"])
    @pytest.mark.parametrize("value", ["\0", "a\0b", "\ud800", None, 5, ["x"], {"x": 1}, "x" * 257 + "\0"])
    def test_a_line_with_something_else_does_not_pass(self, field, value):
        """NUL, half of a surrogate pair and what is no text are refused in each field; a name may be none."""
        good = (field, value) == ("custom_id", None)
        assert passes(lambda: read_line(json.dumps(GOOD | {field: value}).encode())) == good

    @pytest.mark.parametrize(("spelled", "good"), [(r"\u0000", False), (r"\\\u0000", False), (r"\\u0000", True)])
    def test_what_a_key_said_before_is_in_the_line_all_the_same(self, spelled, good):
        """A line is kept as it came, so that NUL has no place in it, be it written over; its letters have."""
        line = json.dumps(GOOD)[:-1] + f', "custom_id": "{spelled}", "custom_id": "x"}}'
        assert passes(lambda: read_line(line.encode())) == good

    @pytest.mark.parametrize("field", [*GOOD, "custom_id"])
    @pytest.mark.parametrize("value", [None, 5, ["x"], [USER], {"x": 1}])
    def test_nothing_is_plain_that_is_no_text(self, field, value):
        """It is left to who can say what is wrong with it."""
        assert not is_plain(GOOD | {field: value})

    @pytest.mark.parametrize("change", [{"prompt": ""}, {"custom_id": ""}, {"custom_id": "x" * 257}, {"order": "ab"}])
    def test_what_is_more_than_that_is_not_plain(self, change):
        """Empty prompts and names, long names and other fields are looked at one by one."""
        assert not is_plain(GOOD | change)

    @pytest.mark.parametrize("missing", GOOD)
    def test_what_is_less_than_that_is_not_plain(self, missing):
        """Where one of the three texts is missing, a name does not stand for it."""
        fields = {name: text for name, text in GOOD.items() if name != missing}
        assert not is_plain(fields)
        assert not is_plain(fields | {"custom_id": "x"})


class TestABadRequest:
    @pytest.mark.parametrize(
        ("changes", "field", "message"),
        [
            ({"prompt": None}, "prompt", "Field required"),
            ({"response_a": None}, "response_a", "Field required"),
            ({"response_b": None}, "response_b", "Field required"),
            ({"prompt": ""}, "prompt", "at least 1 character"),
            ({"prompt": 5}, "prompt", "text or a list of turns"),
            ({"prompt": {"role": "user"}}, "prompt", "text or a list of turns"),
            ({"prompt": []}, "prompt", "at least 1 item"),
            ({"prompt": [USER] * 1025}, "prompt", "at most 1024 items"),
            ({"prompt": [USER, ASSISTANT]}, "prompt", "the last turn must be the user's"),
            ({"prompt": [{"role": "user", "content": ""}]}, "prompt[0].content", "at least 1 character"),
            ({"prompt": [{"role": "tool", "content": "x"}]}, "prompt[0].role", "'system', 'user' or 'assistant'"),
            ({"prompt": [{"content": "x"}]}, "prompt[0].role", "Field required"),
            ({"prompt": [USER, {"role": "user"}]}, "prompt[1].content", "Field required"),
            ({"prompt": [{**USER, "name": "x"}]}, "prompt[0].name", "Extra inputs are not permitted"),
            ({"prompt": ["Why?"]}, "prompt[0]", "valid dictionary"),
            ({"prompt": "a\x00b"}, "prompt", "NUL character"),
            ({"prompt": [{"role": "user", "content": "\x00"}]}, "prompt[0].content", "NUL character"),
            ({"response_a": 5}, "response_a", "text or a list of turns"),
            ({"response_a": []}, "response_a", "at least 1 item"),
            ({"response_a": [USER]}, "response_a", "turns must alternate"),
            ({"response_a": [ASSISTANT, USER]}, "response_a", "turns must alternate"),
            ({"response_a": [ASSISTANT, ASSISTANT, ASSISTANT]}, "response_a", "turns must alternate"),
            ({"response_a": [{"role": "system", "content": "x"}]}, "response_a[0].role", "'user' or 'assistant'"),
            ({"response_b": "\udc00"}, "response_b", "lone surrogate at character 0"),
            ({"response_b": [{"role": "assistant", "content": "\x00"}]}, "response_b[0].content", "NUL character"),
            ({"order": "AB"}, "order", "'both', 'ab' or 'ba'"),
            ({"profile": "short"}, "profile", "'own', 'card', 'pocket' or 'rewardbench'"),
            ({"tie_margin": -0.1}, "tie_margin", "greater than or equal to 0"),
            ({"tie_margin": 0.5}, "tie_margin", "less than 0.5"),
            ({"tie_margin": float("nan")}, "tie_margin", "finite number"),
            ({"tie_margin": float("inf")}, "tie_margin", "finite number"),
            ({"tie_margin": "0.1"}, "tie_margin", "valid number"),
            ({"tie_margin": True}, "tie_margin", "valid number"),
            ({"custom_id": ""}, "custom_id", "at least 1 character"),
            ({"custom_id": "x" * 257}, "custom_id", "at most 256 characters"),
            ({"custom_id": "\x00"}, "custom_id", "NUL character"),
            ({"custom_id": 7}, "custom_id", "valid string"),
            ({"metadata": {f"key-{number}": "" for number in range(17)}}, "metadata", "at most 16 items"),
            ({"metadata": {"key": "x" * 513}}, "metadata.key", "at most 512 characters"),
            ({"metadata": {"key": 5}}, "metadata.key", "valid string"),
            ({"metadata": []}, "metadata", "valid dictionary"),
            ({"temperature": 1}, "temperature", "Extra inputs are not permitted"),
        ],
    )
    def test_the_field_at_fault_is_named(self, changes, field, message):
        """A problem names the field and says what it should be, in the form that the caller meant."""
        problem = problem_of({name: value for name, value in {**GOOD, **changes}.items() if value is not None})
        assert problem.errors is not None
        [error] = problem.errors
        assert error.field == field
        assert message in error.message
        assert problem.detail == f"{field}: {error.message}."
        assert problem.document().status == 422

    @pytest.mark.parametrize("field", ["prompt", "response_a", "custom_id"])
    def test_a_lone_surrogate_is_told_the_same_everywhere(self, field):
        """Half of a surrogate pair is told in words that say what it is and where."""
        problem = problem_of({**GOOD, field: "a\ud800b"})
        assert problem.errors == [
            FieldError(field=field, message="contains a lone surrogate at character 1, which is not text; remove it")
        ]

    @pytest.mark.parametrize("key", ["", "x" * 65, "\x00"])
    def test_a_bad_metadata_key_is_a_problem_of_the_metadata(self, key):
        """A key that cannot be is told as a fault of the field that it stands in."""
        problem = problem_of({**GOOD, "metadata": {key: "x"}})
        assert problem.errors is not None
        assert all(each.field.startswith("metadata") for each in problem.errors)

    @pytest.mark.parametrize("body", [[], "text", None, 5])
    def test_a_body_that_is_no_object_is_a_problem_of_the_whole(self, body):
        """Where there are no fields, the body itself is at fault."""
        problem = problem_of(body)
        assert problem.errors is not None
        assert [each.field for each in problem.errors] == [""]
        assert problem.detail.startswith("body: ")

    def test_all_fields_at_fault_are_told_at_once(self):
        """A caller learns of every fault in one answer, and the detail says how many more there are."""
        problem = problem_of({"prompt": "", "response_a": 5})
        assert problem.errors is not None
        assert [each.field for each in problem.errors] == ["prompt", "response_a", "response_b"]
        assert problem.detail.startswith("prompt: ")
        assert problem.detail.endswith(" (and 2 more).")

    @pytest.mark.parametrize(
        "changes",
        [
            {"order": "SECRET"},
            {"prompt": "SECRET\x00"},
            {"response_a": [{"role": "SECRET", "content": "SECRET"}]},
            {"tie_margin": "SECRET"},
            {"metadata": {"key": "SECRET" * 100}},
        ],
    )
    def test_nobody_s_text_is_repeated(self, changes):
        """A problem document holds nothing of the contents that were refused."""
        assert "SECRET" not in problem_of({**GOOD, **changes}).document().model_dump_json()

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            (MANY, ""),
            ({"metadata": MANY}, "metadata"),
            ({"prompt": [{**USER, **MANY}]}, "prompt[0]"),
            ({"response_a": [MANY] * 3}, "response_a[0]"),
        ],
        ids=["unknown members", "metadata", "a turn's", "each turn's"],
    )
    def test_an_object_of_many_members_is_one_fault(self, changes, field):
        """Each of a hundred thousand would be an error of its own, and telling them all would stop the service."""
        problem = problem_of({**GOOD, **changes})
        assert problem.errors is not None
        assert [each.field for each in problem.errors] == [field]
        assert str(len(MANY))[:3] in problem.errors[0].message

    def test_of_many_wrong_turns_the_first_is_told(self):
        """As many turns as may be, with as many members as are told one by one, make no more errors than one."""
        turns = [{**ASSISTANT, **{str(number): 0 for number in range(62)}}] * 1024
        with pytest.raises(ValidationError) as refusal:
            ComparisonRequest.model_validate({"prompt": turns, "response_a": turns, "response_b": turns})
        assert refusal.value.error_count() == 3 * 62

    @pytest.mark.parametrize("model", [BatchRequest, Window, EndpointRequest, ReplayRequest, Rotation])
    def test_no_other_body_is_told_member_by_member(self, model):
        """What a comparison is kept to holds for everything that is sent."""
        with pytest.raises(ValidationError) as refusal:
            model.model_validate(MANY)
        assert refusal.value.error_count() == 1

    def test_a_request_cannot_be_changed_afterwards(self):
        """What was validated stays as it was."""
        with pytest.raises(ValidationError):
            request().prompt = "another"


class TestProblems:
    @pytest.mark.parametrize(
        ("location", "path"),
        [
            ((), ""),
            (("prompt",), "prompt"),
            (("prompt", "text"), "prompt"),
            (("prompt", "turns"), "prompt"),
            (("prompt", "turns", 0, "content"), "prompt[0].content"),
            (("response_a", "turns", 12, "role"), "response_a[12].role"),
            (("metadata", "key"), "metadata.key"),
            ((3, "prompt"), "[3].prompt"),
            (("comparisons", 3, "turns"), "comparisons[3].turns"),
        ],
    )
    def test_places_are_spelt_as_a_program_would(self, location, path):
        """A place in a body is spelt with dots and brackets, without the names of our own unions."""
        assert field_path(location) == path

    @pytest.mark.parametrize("key", ["text", "turns"])
    def test_a_metadata_key_is_named_whatever_it_is(self, key):
        """A key of the caller's own is named even where it is spelt like one of our words."""
        problem = problem_of({**GOOD, "metadata": {key: 5}})
        assert problem.errors is not None
        assert [each.field for each in problem.errors] == [f"metadata.{key}"]

    def test_a_document_is_what_rfc_9457_asks_for(self):
        """Type, title, status and detail, with our code, and nothing about fields where none is at fault."""
        document = Problem(NOT_FOUND, "There is no comparison cmp_1.").document("req_1").model_dump()
        assert document == {
            "type": "urn:nightcourt:problem:not_found",
            "title": "There is no such thing here",
            "status": 404,
            "detail": "There is no comparison cmp_1.",
            "code": "not_found",
            "request_id": "req_1",
            "errors": None,
        }

    def test_a_body_that_is_not_json_is_called_so(self):
        """The parser's complaint is passed on, under the code for bodies that are not JSON."""
        with pytest.raises(ValidationError) as refusal:
            ComparisonRequest.model_validate_json('{"prompt": ')
        problem = invalid_request(refusal.value.errors(include_url=False, include_input=False))
        assert (problem.kind.code, problem.kind.status) == ("malformed_json", 400)
        assert problem.errors is None

    def test_errors_of_our_own_checks_stand_without_pydantic_s_preface(self):
        """The message is ours alone."""
        problem = problem_of({**GOOD, "prompt": [USER, ASSISTANT]})
        assert problem.errors == [
            FieldError(field="prompt", message="the last turn must be the user's, since the responses answer it")
        ]
