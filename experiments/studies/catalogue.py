"""All studies by name, in the order of docs/results/studies.md."""

from experiments.studies import block_size, bursty, evidence, halves, question_types, scene_changes, selection

STUDIES = {
    module.STUDY.name: module.STUDY
    for module in (block_size, selection, halves, question_types, bursty, scene_changes, evidence)
}
