"""What a user reads is short, and names of columns are in quotes."""

import pytest

from hftl.errors import (
    MAX_LENGTH,
    OutOfResources,
    PublishError,
    TrainingDiverged,
    UserError,
    quote_names,
    unknown_name,
)


@pytest.mark.parametrize("kind", [UserError, OutOfResources, PublishError, TrainingDiverged])
def test_no_message_is_longer_than_two_thousand_characters(kind):
    message = str(kind("It begins so. " + "x" * 100_000 + " Type --this."))
    assert len(message) <= MAX_LENGTH == 2000
    assert message.startswith("It begins so. ") and message.endswith(" Type --this.")
    assert "characters left out" in message


def test_a_short_message_stays_as_it_is():
    assert str(UserError("Found a; expected b. Type c.")) == "Found a; expected b. Type c."


def test_names_are_quoted_so_that_blanks_are_seen_and_many_are_counted():
    assert quote_names(["text", " label", "a\xa0b"]) == "'text', ' label', 'a\\xa0b'"
    assert quote_names(map(str, range(2000)), 3) == "'0', '1', '2' and 1,997 more"
    assert len(quote_names(["x" * 5000] * 50)) < 3000


def test_an_unknown_column_lists_columns_in_quotes():
    assert "Valid: ' label', 'text'." in str(unknown_name("column", "label", ["text", " label"]))
    assert "Valid: accuracy, f1." in str(unknown_name("metric", "acc", ["f1", "accuracy"]))


@pytest.mark.parametrize("error", [UserError, TrainingDiverged, OutOfResources])
def test_a_message_can_be_printed_whatever_is_in_it(error):
    assert str(error("the file l\udce9eme.txt")).encode() == b"the file l\\udce9eme.txt"
