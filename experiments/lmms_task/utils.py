"""What nano_clips.yaml needs in Python: the video of a row, and whether an answer is right."""

from experiments.synthetic.questions import is_right


def visuals(doc: dict) -> list[str]:
    return [doc["video"]]


def right(doc: dict, results: list[str]) -> dict[str, float]:
    return {"right": float(is_right(doc, results[0]))}
