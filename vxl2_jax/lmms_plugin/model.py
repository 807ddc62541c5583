"""The class that lmms-eval makes of `--model vxl2_jax`. The only module that imports lmms-eval."""

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
    """A model whose videos are watched once and asked many times. It generates; it has no log-likelihoods.

    Answers belong to the task, so to --gen_kwargs: max_new_tokens, temperature, top_p, do_sample, until. For the other
    options see `settings.read`. There is one seed: repeats of a request (--repeats) are drawn alike.
    """

    is_simple = True

    def __init__(self, **model_args: Any) -> None:
        super().__init__()
        wanted = settings.read(model_args)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise RequestError("vxl2_jax runs in one process: start lmms-eval without accelerate or torchrun")
        self._watch, self._ask = wanted.watch, wanted.ask
        self._model = vxl2_jax.load(**wanted.model)

    def generate_until(self, instances: list[Instance]) -> list[str]:
        """The answers, in order; empty where a video could not be watched."""
        if ignored := requests.not_followed(instance.args[1] for instance in instances):
            eval_logger.warning(f"generation_kwargs that vxl2_jax does not follow: {', '.join(ignored)}")
        asked = [self._request(instance) for instance in instances]
        with tqdm(total=len(asked), desc="Model Responding") as bar:
            return requests.answer_all(self._model, asked, self._watch, self._ask, bar.update)

    def _request(self, instance: Instance) -> requests.EvalRequest:
        question, given, doc_to_visual, document, task, split = instance.args
        visuals = doc_to_visual(self.task_dict[task][split][document])
        return requests.request(visuals, question, given, f"{task}, document {document}")

    def generate_until_multi_round(self, instances: list[Instance]) -> NoReturn:
        """Raises RequestError."""
        raise RequestError("vxl2_jax answers in one round: choose tasks of output_type generate_until")

    def loglikelihood(self, instances: list[Instance]) -> NoReturn:
        """Raises RequestError."""
        raise RequestError("vxl2_jax gives answers, no log-likelihoods: choose tasks of output_type generate_until")
