"""Families of image-text-to-text models, each through its own processor class: what is shared changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.vqa.tiny_models import ANSWERS, QUESTIONS, WORDS, noise_images
from vqa.models.lora import apply_lora_to_model
from vqa.models.shared_prefix import image_groups
from vqa.models.vlm import Model
from vqa.settings import EvaluateSettings, LoraSettings, ModelSettings

SIZE = 56
SPECIAL = [
    *("<pad>", "<unk>", "<end>", "<bos>", "<image>", "<video>", "<fake_token_around_image>", "<global-img>"),
    *("<end_of_utterance>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<IMG_CONTEXT>"),
    *(
        "<img>",
        "</img>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
        "<|image_start|>",
        "<|image_end|>",
    ),
    *("<|img_thumbnail|>",),
]
ID = {token: number for number, token in enumerate(SPECIAL)}
TEXT = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 3,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": 14,
    "initializer_range": 0.3,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
SQUARE = {"height": SIZE, "width": SIZE}
QWEN_VISION = {"depth": 2, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_PIXELS = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "size": {"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 6},
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN_IDS = {
    "image_token_id": ID["<|image_pad|>"],
    "video_token_id": ID["<|video_pad|>"],
    "vision_start_token_id": ID["<|vision_start|>"],
    "vision_end_token_id": ID["<|vision_end|>"],
}
IDEFICS_PIXELS = {"size": {"longest_edge": SIZE}, "max_image_size": {"longest_edge": SIZE}, "do_image_splitting": False}
IDEFICS = {
    "image_token_id": ID["<image>"],
    "scale_factor": 2,
    "text_config": TEXT | {"model_type": "llama"},
    "vision_config": VISION,
}
SIGLIP = VISION | {"model_type": "siglip_vision_model"}


def gemma(window: int) -> dict[str, Any]:
    text = TEXT | {
        "model_type": "gemma3_text",
        "sliding_window": window,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    return {
        "type": "gemma3",
        "config": {
            "text_config": text,
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 4,
            "image_token_id": ID["<image_soft_token>"],
            "boi_token_id": ID["<start_of_image>"],
            "eoi_token_id": ID["<end_of_image>"],
        },
        "pixels": {"image_processor_type": "Gemma3ImageProcessor", "size": SQUARE},
        "processor": {"image_seq_length": 4},
        "image": "<start_of_image>",
        "level": "prefix" if window > 100 else "vision",
    }


def qwen(kind: str, vision: dict[str, Any]) -> dict[str, Any]:
    text = TEXT | {"rope_parameters": MROPE, "rope_scaling": MROPE, "model_type": f"{kind}_text"}
    return {
        "type": kind,
        "config": {"text_config": text, "vision_config": QWEN_VISION | vision, **QWEN_IDS},
        "pixels": QWEN_PIXELS,
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
        "level": "prefix",
    }


FAMILIES: dict[str, dict[str, Any]] = {
    "smolvlm": {
        "type": "smolvlm",
        "config": IDEFICS,
        "pixels": IDEFICS_PIXELS | {"image_processor_type": "SmolVLMImageProcessor"},
        "processor": {"image_seq_len": 4},
        "level": "prefix",
    },
    "idefics3": {
        "type": "idefics3",
        "config": IDEFICS,
        "pixels": IDEFICS_PIXELS | {"image_processor_type": "Idefics3ImageProcessor"},
        "processor": {"image_seq_len": 4},
        "level": "prefix",
    },
    "llava": {
        "type": "llava",
        "config": {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model"},
            "image_token_id": ID["<image>"],
            "vision_feature_layer": -1,
        },
        "pixels": {"image_processor_type": "CLIPImageProcessor", "size": SQUARE, "crop_size": SQUARE},
        "processor": {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        "level": "prefix",
    },
    "llava-onevision": {
        "type": "llava_onevision",
        "config": {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": SIGLIP,
            "image_token_id": ID["<image>"],
            "video_token_id": ID["<video>"],
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "image_grid_pinpoints": [[SIZE, SIZE], [SIZE, 2 * SIZE]],
        },
        "pixels": {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": SQUARE,
            "image_grid_pinpoints": [[SIZE, SIZE], [SIZE, 2 * SIZE]],
        },
        "processor": {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        "level": "prefix",
    },
    "internvl": {
        "type": "internvl",
        "config": {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": VISION
            | {"image_size": [SIZE, SIZE], "patch_size": [14, 14], "model_type": "internvl_vision"},
            "image_token_id": ID["<IMG_CONTEXT>"],
            "downsample_ratio": 0.5,
        },
        "pixels": {"image_processor_type": "GotOcr2ImageProcessor", "size": SQUARE, "crop_to_patches": False},
        "processor": {"image_seq_length": 4},
        "image": "<IMG_CONTEXT>",
        "level": "prefix",
    },
    "qwen2-vl": qwen("qwen2_vl", {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}),
    "qwen2.5-vl": qwen(
        "qwen2_5_vl",
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
    ),
    "qwen3-vl": qwen(
        "qwen3_vl",
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    ),
    "gemma3-wide": gemma(512),
    "gemma3-narrow": gemma(8),
    "paligemma": {
        "type": "paligemma",
        "config": {
            "text_config": TEXT | {"model_type": "gemma"},
            "vision_config": SIGLIP | {"projection_dim": 32, "vision_use_head": False},
            "image_token_id": ID["<image>"],
            "projection_dim": 32,
        },
        "pixels": {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "image_seq_length": 16},
        "template": False,
        "level": "vision",
    },
    "qwen3.5": {
        "type": "qwen3_5",
        "config": {
            "text_config": TEXT
            | {
                "rope_parameters": MROPE | {"partial_rotary_factor": 1.0},
                "layer_types": ["linear_attention", "full_attention"],
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
            },
            "vision_config": QWEN_VISION
            | {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 64},
            **QWEN_IDS,
        },
        "pixels": QWEN_PIXELS,
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
        "level": "vision",
    },
}
EVERY = pytest.mark.parametrize("family", FAMILIES)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = " ".join(WORDS).lower().replace("?", " ?").split()
    known = {
        word: n
        for n, word in enumerate(
            dict.fromkeys([*SPECIAL, "user", "assistant", ":", "answer", "in", "one", "word", ".", *words])
        )
    }
    known |= {f"w{number}": number for number in range(len(known), 400)}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.add_special_tokens(SPECIAL)
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        bos_token="<bos>",
        additional_special_tokens=SPECIAL[4:],
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ).save_pretrained(folder)


def write_family(folder: Path, family: dict[str, Any]) -> None:
    """A tiny random model in transformers' own format, with the family's own processor."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    net = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family["type"], **family["config"])).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
            elif "norm" not in name:
                parameter.normal_(0, 0.05)
    net.generation_config.eos_token_id, net.generation_config.pad_token_id = 2, 0
    net.save_pretrained(folder)
    write_tokenizer(folder)
    if family["type"] in ("gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"):
        token = "<image_soft_token>" if family["type"] == "gemma3" else "<|image_pad|>"
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        extra = settings.get("extra_special_tokens")
        settings["image_token"] = token
        if isinstance(extra, dict):
            extra["image_token"] = token
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    processor = family.get("processor", {}) | {"processor_class": PROCESSOR_MAPPING_NAMES[family["type"]]}
    (folder / "preprocessor_config.json").write_text(json.dumps(family["pixels"]))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    if family.get("template", True):
        image = family.get("image", "<image>")
        (folder / "chat_template.jinja").write_text(
            "{% for turn in messages %}{{ turn['role'] }} : {% for part in turn['content'] %}{% if part['type'] == 'image' %}"
            + image
            + "{% else %} {{ part['text'] }}{% endif %}{% endfor %}<end>{% endfor %}"
            "{% if add_generation_prompt %}assistant :{% endif %}"
        )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def loaded(family: str, folders: Path) -> Model:
    if not (folders / family).is_dir():
        write_family(folders / family, FAMILIES[family])
    return Model.load(ModelSettings(kind="vlm", weights=str(folders / family)))


@EVERY
def test_the_probe_finds_what_may_be_shared(family: str, folders: Path) -> None:
    model = loaded(family, folders)
    assert model.level == FAMILIES[family]["level"], model.shared


@EVERY
def test_answers_are_those_of_generate_for_one_question_at_a_time(family: str, folders: Path) -> None:
    model = loaded(family, folders)
    plain = AutoModelForImageTextToText.from_pretrained(folders / family).eval()
    batch = model.processor.collate(noise_images(), QUESTIONS)
    with torch.no_grad():
        ours = iter(model.answer(batch, model.encode(batch), EvaluateSettings(max_new_tokens=5), adapted=False))
        texts = []
        for image, group in zip(noise_images(), QUESTIONS, strict=True):
            for question in group:
                prompt = model.processor.prompt(question)
                inputs = model.processor.whole(text=[prompt], images=[[image]], return_tensors="pt")
                known = {name: value for name, value in inputs.items() if name not in ("rows", "cols")}
                ids = plain.generate(**known, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
                texts.append(model.processor.text(ids.tolist()))
                assert next(ours).text == texts[-1]
    assert len(set(texts)) > 1


@EVERY
def test_logits_and_the_adapters_gradients_are_those_of_a_row_a_question(family: str, folders: Path) -> None:
    model = apply_lora_to_model(loaded(family, folders), LoraSettings(r=4, dropout=0.0))
    level = model.level
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    batch = model.processor.collate(noise_images(), QUESTIONS, ANSWERS)
    said = {}
    for model.network.level in ("none", level):
        model.net.zero_grad()
        out = model.net(**batch)
        out["loss"].backward()
        gradients = torch.cat([p.grad.flatten() for p in model.net.parameters() if p.grad is not None])
        said[model.level] = (out["logits"].detach(), gradients)
    for ours, theirs in zip(said[level], said["none"], strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))
    assert len(image_groups(batch)) >= 1
    assert all("vision" not in name for name, p in model.net.named_parameters() if p.requires_grad)
