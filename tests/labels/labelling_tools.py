"""Answers the questions of an exported file by the code of Argilla or of Label Studio; runs in an environment of theirs.

python labelling_tools.py argilla|label-studio questions.json answers.json [labelling interface, XML]
"""

import json
import sys

CHOICES = ["1", "2", "tie", "both_bad", "skip"]
USER = "b1f5f7a3-2b2e-4d8f-9a60-0b5d8f8f1b11"


def argilla(rows):
    import argilla as rg

    answered = []
    for row in rows:
        record = rg.Record.from_dict(row)
        choice = CHOICES[len(answered) % 5]
        response = rg.Response("choice", choice, user_id=USER)
        again = rg.Record(
            id=record.id, fields=dict(record.fields), metadata=dict(record.metadata), responses=[response]
        )
        answered.append(again.to_dict())
    return answered


def label_studio(rows, interface):
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface(interface)
    assert interface.is_valid, "the labelling interface"
    answered = []
    for row in rows:
        assert interface.validate_task(row)
        (region,) = interface.create_regions({"choice": CHOICES[len(answered) % 5]})
        annotation = dict(
            completed_by=1,
            was_cancelled=False,
            result=[json.loads(region.model_dump_json()) | region._dict()],
        )
        assert interface.validate_annotation(annotation)
        answered.append(row | dict(id=len(answered) + 1, annotations=[annotation]))
    return answered


if __name__ == "__main__":
    tool, questions, answers, *interface = sys.argv[1:]
    with open(questions, encoding="utf-8") as file:
        found = json.load(file)
    found = argilla(found) if tool == "argilla" else label_studio(found, *interface)
    with open(answers, "w", encoding="utf-8") as file:
        json.dump(found, file)
