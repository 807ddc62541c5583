"""The class behind `--model vxl2_jax`. The only module that imports lmms-eval."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from loguru import logger as eval_logger
from tqdm import tqdm

import vxl2_jax
from vxl2_jax.errors import RequestError
from vxl2_jax.lmms_plugin import requests, settings


class Vxl2Jax(lmms):
    """A model that watches each video once and answers all questions about it. It has no log-likelihoods.

    The task sets how answers are decoded, or --gen_kwargs: max_new_tokens, temperature, top_p, do_sample, until. For the
    other options see `settings.read`. There is one seed: repeats of a request (--repeats) get the same answer.
    """

    is_simple = True

    def __init__(self, **model_args: Any) -> None:
        super().__init__()
        options = settings.read(model_args)
        if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
            raise RequestError("vxl2_jax runs in one process: start lmms-eval without accelerate or torchrun")
        self._watch, self._ask = options.watch, options.ask
        self._model = vxl2_jax.load(**options.model)

    def generate_until(self, instances: list[Instance]) -> list[str]:
        """The answers, in order; empty if the video could not be watched."""
        if ignored := requests.ignored_names(instance.args[1] for instance in instances):
            eval_logger.warning(f"generation_kwargs that vxl2_jax ignores: {', '.join(ignored)}")
        questions = [self._request(instance) for instance in instances]
        with tqdm(total=len(questions), desc="Model Responding") as bar:
            return requests.answer_all(self._model, questions, self._watch, self._ask, bar.update)

    def _request(self, instance: Instance) -> requests.EvalRequest:
        question, generation_kwargs, doc_to_visual, document, task, split = instance.args
        visuals = doc_to_visual(self.task_dict[task][split][document])
        return requests.request(visuals, question, generation_kwargs, f"{task}, document {document}")

    def generate_until_multi_round(self, instances: list[Instance]) -> NoReturn:
        """Raises RequestError."""
        raise RequestError("vxl2_jax answers in one round: choose tasks of output_type generate_until")

    def loglikelihood(self, instances: list[Instance]) -> NoReturn:
        """Raises RequestError."""
        raise RequestError("vxl2_jax has no log-likelihoods: choose tasks of output_type generate_until")
