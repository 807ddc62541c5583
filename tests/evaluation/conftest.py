"""One annotation row of each benchmark, in the form of the real ones."""

import pytest


@pytest.fixture
def docs() -> dict[str, dict]:
    return {
        "mlvu": {
            "video_name": "kitchen_3.mp4",
            "duration": 312.5,
            "task_type": "order",
            "answer": "B",
            "question": "Which comes first?\n(A) The kettle\n(B) The toast",
        },
        "video_mme": {
            "videoID": "k1tch3n",
            "question_id": "812-2",
            "duration": "medium",
            "domain": "Sports",
            "answer": "C",
            "sub_category": "Rowing",
            "task_type": "Counting",
            "question": "How many boats pass at 01:10?",
            "options": ["A. Two.", "B. Three.", "C. It's four.", "D. Ünzählig."],
        },
        "longvideobench": {
            "id": "boats_0",
            "video_path": "boats.mp4",
            "question": "Who waves?",
            "option0": "A rower",
            "option1": "N/A",
            "option2": "The judge",
            "option3": "N/A",
            "option4": "N/A",
            "correct_choice": 1,
            "duration_group": 600,
            "question_category": "S2E",
            "duration": 404.2,
        },
        "lvbench": {
            "video": "b0ats",
            "question": "Who wins?",
            "candidates": ["(A) Red", "(B) Blue", "(C) Green"],
            "answer": "(C) Green",
            "type": "sport",
            "question_type": ["reasoning", "summary"],
            "time_reference": "00:10-00:20",
        },
    }
