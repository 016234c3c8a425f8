"""Tiny random models of the real libraries, saved as their folders look."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = ("a", "two", "dog", "hoop", "red", "blue", "runs", "near", "the", "on", "stripes", "tile", "caption", "not")


def word_tokenizer(folder: Path, words: Sequence[str] = WORDS, **settings: Any) -> Any:
    """A tokenizer of whole words in ``folder``."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *words))}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", **settings
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def causal(folder: Path, *, template: str | None = None) -> Path:
    """A decoder alone, with a template of turns if asked for."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = word_tokenizer(folder)
    if template is not None:
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    sizes = {"n_positions": 256, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(vocab_size=len(SPECIAL) + len(WORDS), **sizes, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def seq2seq(folder: Path, seed: int) -> Path:
    """An encoder and a decoder."""
    from transformers import T5Config, T5ForConditionalGeneration

    word_tokenizer(folder)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(SPECIAL) + len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def blip(folder: Path) -> Path:
    """A BLIP, with its processor."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers import BlipImageProcessor as ImageProcessor

    folder.mkdir(parents=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), bos_token="[DEC]")
    BlipProcessor(ImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(4)
    config = BlipConfig(
        text_config={
            **sizes, "vocab_size": len(pieces), "encoder_hidden_size": 16, "bos_token_id": 4, "eos_token_id": 3,
            "sep_token_id": 3, "pad_token_id": 0,
        },
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    BlipForConditionalGeneration(config).save_pretrained(folder)
    return folder


def encoder_decoder(folder: Path) -> Path:
    """A vision transformer with a decoder of its own, whose two processors stand side by side."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, ViTConfig, ViTImageProcessor
    from transformers import VisionEncoderDecoderModel as Model

    word_tokenizer(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    seen = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    said = GPT2Config(
        vocab_size=len(SPECIAL) + len(WORDS), n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2,
        add_cross_attention=True, is_decoder=True,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(seen, said)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    torch.manual_seed(5)
    Model(config).save_pretrained(folder)
    return folder


def stable_diffusion(folder: Path) -> Path:
    """Stable Diffusion of a few thousand weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(6)
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=2, norm_num_groups=2,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 8), in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=2,
    )  # fmt: skip
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=32, bos_token_id=52, eos_token_id=53, pad_token_id=53,
        )
    )  # fmt: skip
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, beta_schedule="scaled_linear")
    StableDiffusionPipeline(
        vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder / "pipeline")
    return folder / "pipeline"
