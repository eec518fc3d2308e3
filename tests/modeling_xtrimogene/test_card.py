"""What people wrote by hand into a card on the Hub stays."""

import pytest
from huggingface_hub import ModelCard, RepoCard

from xtrimogene.modeling_xtrimogene.card_xtrimogene import merged, new_card

FIRST = """---
license: unknown
tags:
- biology
---

# types

A small model.

## Data

700 cells

```python
## no heading
```

## Evaluation

Accuracy 0.7
"""
SECOND = FIRST.replace("Accuracy 0.7", "Accuracy 0.8").replace("700", "900")


@pytest.fixture
def pushed():
    return merged(FIRST, None)[0]


def test_a_card_that_nobody_changed_is_replaced(pushed):
    card, kept = merged(SECOND, pushed)
    assert kept == []
    assert card == merged(SECOND, None)[0]
    assert RepoCard(card).data.to_dict() == {"license": "unknown", "tags": ["biology"]}


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ("A small model.", "A small model of *ours*.", ["title"]),
        ("# types", "# Our types", ["title"]),
        ("700 cells", "700 cells of one donor", ["## Data"]),
        ("license: unknown", "license: cc-by-4.0", ["metadata: license"]),
        ("- biology", "- biology\n- blood", ["metadata: tags"]),
        ("license: unknown", "license: unknown\ndoi: 10.1/2", ["metadata: doi"]),
        ("## Evaluation", "## Notes\n\nBy hand.\n\n## Evaluation", ["## Notes"]),
        ("<!--", "## Last\n\nBy hand.\n\n<!--", ["## Last"]),
        (" -->\n", " -->\n\n## After\n\nBy hand.\n", ["## After"]),
    ],
)
def test_what_was_changed_by_hand_stays_and_the_rest_is_new(pushed, old, new, kept):
    assert old in pushed
    card, found = merged(SECOND, pushed.replace(old, new, 1))
    assert found == kept
    assert all(line in card for line in new.splitlines() if "--" not in line)
    assert "Accuracy 0.8" in card
    third, found = merged(FIRST, card)  # and so on, push after push
    assert found == kept
    assert all(line in third for line in new.splitlines() if "--" not in line)
    assert "Accuracy 0.7" in third


def test_a_section_written_by_hand_stays_where_it_was(pushed):
    card, _ = merged(SECOND, pushed.replace("## Evaluation", "## Notes\n\nBy hand.\n\n## Evaluation", 1))
    assert card.index("## Data") < card.index("## Notes") < card.index("## Evaluation")


def test_what_was_removed_by_hand_stays_away(pushed):
    start, end = pushed.index("## Data"), pushed.index("## Evaluation")
    card, kept = merged(SECOND, pushed[:start] + pushed[end:])
    assert "cells" not in card
    assert "cells" not in merged(FIRST, card)[0]
    assert "Accuracy 0.8" in card
    assert kept == []


def test_line_endings_of_the_browser_are_no_change(pushed):
    assert merged(SECOND, pushed.replace("\n", "\r\n")) == merged(SECOND, pushed)


def test_a_card_of_others_stays_and_gets_the_metadata_it_lacks():
    card, kept = merged(FIRST, "---\nlicense: mit\n---\n# Theirs\n\nText.\n")
    assert kept == ["all of the card, which xtrimogene did not write"]
    assert RepoCard(card).data.to_dict() == {"license": "mit", "tags": ["biology"]}
    assert "# Theirs\n\nText." in card
    assert "small model" not in card


def test_the_template_of_transformers_is_no_card_of_others():
    from huggingface_hub import ModelCardData

    said = "This is the model card of a 🤗 transformers model. This model card has been automatically generated."
    template = ModelCard.from_template(ModelCardData(library_name="transformers"), model_description=said)
    assert merged(FIRST, template.content) == merged(FIRST, None)
    filled = template.content.replace("[More Information Needed]", "Jane", 1)
    assert "Jane" in merged(FIRST, filled)[0]


def test_a_new_card_says_library_and_task():
    data = ModelCard(new_card("me/types", "TxFMModel")).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "feature-extraction")
