"""What is dumped from the original's modules is what check_parity.py compares, array by array, in all three variants.

The original's code is not at hand. A stand-in with its modules, arguments and outputs computes the small golden
checkpoint by the functions that are proven against golden tensors elsewhere: so a wrong name, axis or row would show.
"""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from einops import rearrange

from experiments import check_parity
from experiments import dump_reference as dump
from experiments.parity import assembled
from experiments.parity.cases import Case, Runner, turn_back
from experiments.parity.golden import layout_of
from experiments.parity.language import DENSE
from experiments.parity.vision import encode_frames, frame_features, pad_video
from vxl2_jax.cache import views
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.layout import PrefillRule, natural_mask
from vxl2_jax.models import dts, qwen2, video_xl_2
from vxl2_jax.relevance import selection


def tensor(array):
    return torch.from_numpy(np.array(array))


class Part(torch.nn.Module):
    """A module that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args, **given):
        return self.function(*args, **given)


class StandIn(torch.nn.Module):
    """LlavaQwenForCausalLM as far as the dump knows it; `generate` takes the arguments of all three variants."""

    def __init__(self, config, params):
        super().__init__()
        self.parts, self.config = (config, params), SimpleNamespace()
        self.model = Part(lambda gives, **given: SimpleNamespace(past_key_values=gives))
        self.model.vision_tower = Part(self.see)
        self.model.sae = Part(self.synthesise)
        self.model.mm_projector = Part(self.project)

    def see(self, pixels):
        frames = np.rint((rearrange(pixels.numpy(), "f c y x -> f y x c") * 0.5 + 0.5) * 255).astype(np.uint8)
        config, params = self.parts
        return tensor(frame_features(params, config, frames))

    def synthesise(self, x):
        config, params = self.parts
        module = dts.DTS(config.norm_groups, config.max_relative)
        out = module.apply({"params": params["dts"]}, rearrange(x.numpy(), "g c t y x -> g t y x c"), [])
        return tensor(rearrange(np.asarray(out), "g y x c -> g c 1 y x"))

    def project(self, x):
        config, params = self.parts
        return tensor(
            video_xl_2.project(params, config, rearrange(x.numpy(), "g (y x) c -> g y x c", y=config.resized_grid), 1)
        )

    def forward(self, calls, logits):
        for call in calls:
            self.model(**call)
        return SimpleNamespace(logits=tensor(logits)[None])

    def generate(
        self,
        ids,
        *,
        images,
        time_embedding,
        modalities,
        max_new_tokens,
        block_size_chosed=None,
        prev_blocks_num=None,
        selected_unit_indices=None,
        selected_config=None,
        **greedy,
    ):
        config, params = self.parts
        assert modalities == ["video"]
        assert greedy == {"do_sample": False, "num_beams": 1, "use_cache": True, "repetition_penalty": 1.0}
        pixels = images[0]
        features = self.model.vision_tower(pixels).numpy()
        features = np.concatenate([features, np.repeat(features[-1:], -len(features) % 4, axis=0)])
        maps = rearrange(
            np.asarray(dts.resize(features, config.vision.grid, config.resized_grid)), "f y x c -> f c y x"
        )
        regrouped = np.ascontiguousarray(maps).reshape(len(maps) // 4, maps.shape[1], 4, *maps.shape[2:])
        out = self.model.sae(tensor(regrouped)).squeeze(2)
        self.model.mm_projector(tensor(rearrange(out.numpy(), "g c y x -> g (y x) c")))
        frames = np.rint((rearrange(pixels.numpy(), "f c y x -> f y x c") * 0.5 + 0.5) * 255).astype(np.uint8)
        visual = np.asarray(encode_frames(params, config, pad_video(frames, 4)))
        ids, video = ids[0].numpy(), time_embedding[0].numpy()
        place = int(np.argmax(ids == -200))
        whole = np.concatenate([ids[:place], video, ids[place + 1 :]])
        case = Case("e2e", layout_of(video, place, config.visual_placeholder), whole, visual, len(frames), True)
        embeds = np.array(qwen2.embed(params["language"], config.language, whole))
        embeds[case.layout.visual_positions()] = rearrange(visual, "g v e -> (g v) e")
        rule = DENSE if block_size_chosed is None else PrefillRule(block_size_chosed, prev_blocks_num)
        return self._said(
            Runner(config, params),
            case,
            rule,
            tensor(embeds)[None],
            selected_unit_indices,
            selected_config,
            max_new_tokens,
        )

    def _said(self, runner, case, rule, embeds, units, selected, steps):
        streams, hidden = runner.watch(case, rule, keep_hidden=True)
        base = runner.base(case, rule)
        answer = runner.ask(case, base, steps)
        first = np.concatenate([runner.logits(hidden), np.asarray(answer.question_logits)])
        natural = runner.natural_cache(case, streams, base, rotated=units is None)
        mask = tensor(np.where(natural_mask(case.layout, rule, len(case.question)), 0.0, -1e9))[None, None]
        calls = [
            {
                "inputs_embeds": embeds,
                "past_key_values": [],
                "gives": legacy(natural),
                "attention_mask": None if rule is DENSE else mask,
            }
        ]
        if units is not None:
            memory = runner.remember(case, rule, selected["compression"])
            chunks = case.layout.chunks(selected["selected_chunk_size"])
            dense = selection.dense_chunks(
                chunks, selection.chunks_of_units(units, chunks, selected["selected_chunk_size"])
            )
            plan = assembled.plan_mixed(case.layout, selected["compression"], selected["selected_chunk_size"], dense)
            keys, values = (np.asarray(part)[:, :, : len(plan.store)] for part in assembled.assemble(memory, plan))
            past = legacy(np.stack([turn_back(keys, runner.config), values], axis=1))
            answer = runner.ask(
                case, views.mixed_view(memory, selected["selected_chunk_size"], dense[None], runner.kernel), steps
            )
            calls.append({"inputs_embeds": embeds[:, -len(case.question) :], "past_key_values": past, "gives": past})
            first = np.asarray(answer.question_logits)
        self(calls=calls, logits=first)
        for row in np.asarray(answer.logits)[1:]:
            self(calls=[], logits=row[None])
        return tensor(np.asarray(answer.tokens))[None]


def legacy(cache):
    """[layers, 2, heads, length, width] → the original's list of (keys, values) with a batch axis."""
    return [tuple(tensor(part)[None] for part in layer) for layer in cache]


def tokenize(text):
    """Ids of the small vocabulary: a timestamp as the golden ones are, of other texts one a word."""
    if text.startswith("Time "):
        ids = [462, 220, *({".": 13, "s": 82, ":": 25}.get(c) or 15 + int(c) for c in text.removeprefix("Time "))]
    else:
        ids = [100 + len(word) for word in text.split()]
    return SimpleNamespace(input_ids=ids)


@pytest.fixture
def original(golden, monkeypatch):
    """The package that the dump imports."""
    checkpoint = golden / "tiny_checkpoint"
    special = json.loads((checkpoint / "special_tokens.json").read_text())
    monkeypatch.setattr(dump, "SPECIAL", {name: special[name] for name in dump.SPECIAL})
    builder = ModuleType("builder")
    model = StandIn(*huggingface.load(checkpoint, "float32"))
    builder.load_pretrained_model = lambda *args, **options: (tokenize, model, None, None)
    for name in ("videoxl2", "videoxl2.videoxl2", "videoxl2.videoxl2.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "videoxl2.videoxl2.model.builder", builder)
    return checkpoint


def dumped(monkeypatch, checkpoint, out, variant, *more):
    command = [
        "dump_reference",
        "--variant",
        variant,
        "--code",
        str(out),
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "3", *more])
    monkeypatch.setattr(sys, "path", list(sys.path))
    dump.main()


def test_all_three_variants_agree_with_check_parity(original, tmp_path, monkeypatch, capsys):
    before = {file.name: file.read_bytes() for file in original.iterdir()}
    for variant in dump.VARIANTS:
        dumped(monkeypatch, original, tmp_path, variant)
    report = check_parity.compare(tmp_path, None, stride=2)
    told = capsys.readouterr().out
    assert report.failed == [] and report.checked == 20, told
    for name in (
        "vision video_siglip",
        "video_dts",
        "video_proj",
        "video_pooled",
        "dense e2e_kv_last_layer",
        "dense e2e_logits",
        "chunked e2e_mask_b1_p1",
        "chunked e2e_b1_p1_greedy_logits",
        "e2e_b1_p1_prefill_kv_last_layer",
        "e2e_mixed_kv_last_layer",
        "e2e_suffix_logits",
    ):
        assert name in told
    assert {file.name: file.read_bytes() for file in original.iterdir()} == before  # the links lead there


def test_one_variant_alone_can_be_compared_and_a_wrong_tensor_shows(original, tmp_path, monkeypatch, capsys):
    dumped(monkeypatch, original, tmp_path, "pure", "--frames", "6")
    assert check_parity.compare(tmp_path, None, stride=2).failed == []
    assert "bilevel.npz holds no mixed caches" in capsys.readouterr().out
    with np.load(tmp_path / "vision.npz") as file:
        arrays = dict(file)
    arrays["video_dts"] = arrays["video_dts"].swapaxes(2, 3)
    np.savez(tmp_path / "vision.npz", **arrays)
    assert check_parity.compare(tmp_path, None, stride=2).failed == ["vision video_dts"]


def test_hooks_keep_what_is_changed_in_place_afterwards():
    cache, module = [(torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2, 1))], Part(lambda past_key_values: past_key_values)
    with dump.Tap() as tap:
        tap.keep("before", module, lambda given, out: dump.last_layer(given["past_key_values"]), before=True)
        module(past_key_values=cache)
        cache[0][0].fill_(5)
        module(past_key_values=[])
    module(past_key_values=cache)
    (kept,) = tap.taken["before"]
    assert kept.shape == (2, 1, 2, 1) and kept[0].max() == 0
