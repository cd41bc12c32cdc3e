"""Any vision-language model of three families (InternVL3, Qwen2.5-VL, Qwen3-VL) as a student, through transformers.

What was measured and is kept here: the mask is bool [B, 1, L, L] and needs sdpa (eager
adds it as 0 and 1 and is silently wrong, so it is refused); Qwen-VL needs position ids beside a 4D mask, from
`get_rope_index` over the 2D padding mask; `generate` takes no 4D mask, so sampling is prefill and decode with a cache.
Latents (and motion tokens) are injected by a hook on the input embedding: no vocabulary is resized. Works without
torchvision. Prompts are padded on the left, so that latents and answers stand at the same places in every row:

    PAD     to the longest prompt of the batch
    IMAGE   <|im_start|>user, and for each view its start token, image tokens, end token
    TEXT    which image was taken when, if some are of before now; ego status and command, or a question, <|im_end|>
    WM GEO  latents
    ANSWER  <|im_start|>assistant, then the answer

The turn's opening is counted as IMAGE, since it stands before it and says nothing of the scene: so no text stands
before the image, and stage 2 is exactly the causal mask that the model was pretrained with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor, nn

from questions.wording import taken, whole
from shards_schema.errors import ConfigError
from trainer.answers.base import Answers
from trainer.answers.head import AnswerHead
from trainer.answers.words import Words
from trainer.batch import Batch, prompt_text
from trainer.latents import LatentInputs
from trainer.segments import Segment
from trainer.students.base import Prompt, States, Student, layer_index
from trainer.students.hf_config import HFConfig
from trainer.students.weights import Weights, bare, fetched, fetching

FAMILIES = ("internvl", "qwen2_5_vl", "qwen3_vl")
_OPENING, _CLOSING, _ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"
_NEVER = -1e9
"""A logit of probability 0; finite, so that entropies stay numbers."""
_VISION = ("pixel_values", "image_grid_thw")
"""What vision towers take, as processors call it."""
_ROWS = 4096
"""Of the words' table that are read, at most, for the scale of the latents: an 8B's whole table is a gigabyte."""
_TOKENIZING = Lock()
"""A fast tokenizer may not be asked by two threads while one of them sets it up."""
_LINEAR = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """Prompt ids [B, P], positions [B, P] or [3, B, P], and what the vision tower takes."""

    ids: Tensor
    positions: Tensor
    vision: Mapping[str, Tensor]


class HFStudent(Student):
    """See the module. `load` makes one of a config; the constructor takes the parts.

    Args:
        vlm: a `*ForConditionalGeneration` of one of `FAMILIES`, with sdpa attention.
        tokenizer: its tokenizer.
        image_processor: its image processor.
        config: how it is trained.
        answers: what it says; `TextAnswers` are over the model's own vocabulary.
        counts: latents of each kind.
        weights: of a model on the meta device.

    Raises:
        ConfigError: another family, another attention, or no such layer.
    """

    never_said: Tensor

    def __init__(
        self,
        vlm: nn.Module,
        tokenizer: Any,
        image_processor: Any,
        config: HFConfig,
        answers: Answers,
        counts: Mapping[str, int],
        weights: Weights | None = None,
    ) -> None:
        settings: Any = vlm.config
        if settings.model_type not in FAMILIES:
            raise ConfigError(f"model type {settings.model_type!r}: expected one of {', '.join(FAMILIES)}")
        for part in (settings, settings.text_config):
            if part._attn_implementation != "sdpa":
                raise ConfigError(
                    f"attention {part._attn_implementation!r} of {type(part).__name__}: a boolean 4D mask is "
                    'right with "sdpa" only (eager adds it as 0 and 1); load the model with attn_implementation="sdpa"'
                )
        self._tokenizer, self._processor, self.config = tokenizer, image_processor, config
        self._header: list[int] = tokenizer(_ASSISTANT, add_special_tokens=False).input_ids
        table: Any = vlm.get_input_embeddings()  # type: ignore[operator]
        width, first = table.weight.shape[1], table.weight.detach()
        if weights is not None:
            first = weights[next(n for n, p in vlm.named_parameters() if p is table.weight)].to(first.dtype)
        some = first[:: len(first) // _ROWS + 1]
        scale = 0.02 if first.is_meta else float(some.float().std())
        words = Words.of_tokenizer(tokenizer)
        super().__init__(answers, LatentInputs(counts, width, scale), prefix=len(self._header), words=words)
        self.width, self.vlm, self._weights = width, vlm, weights
        self._image_id = int(settings.image_token_id)
        ids = {self._image_id, int(getattr(settings, "video_token_id", None) or self._image_id)}
        self.register_buffer("never_said", torch.tensor(sorted(ids)), persistent=False)
        self._family = str(settings.model_type)
        self._align = layer_index(config.align_layer, len(self.blocks))
        self.head = None if answers.codebook is None else AnswerHead(answers.vocabulary, width, answers.codebook)
        self._injected: list[tuple[int, Tensor]] = []
        self._moved: Tensor | None = None
        table.register_forward_hook(self._inject)
        self._prepare(config)

    def _prepare(self, config: HFConfig) -> None:
        model: Any = self.vlm
        if config.lora is not None:
            from peft import LoraConfig as PeftConfig
            from peft import inject_adapter_in_model
            from peft.tuners.lora import LoraLayer

            lora = config.lora
            peft = PeftConfig(
                r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=_LINEAR  # type: ignore[arg-type]
            )  # fmt: skip
            inject_adapter_in_model(peft, model, low_cpu_mem_usage=True)
            for layer in model.modules():
                if isinstance(layer, LoraLayer):
                    for low in (layer.lora_A, layer.lora_B):  # a step of 1e-6 is less than bfloat16 can tell from none
                        low.float().to_empty(device=torch.get_default_device())
                    layer.reset_lora_parameters("default", True)  # type: ignore[no-untyped-call]
        if config.freeze_vision:
            tower = model.model.vision_tower if self._family == "internvl" else model.model.visual
            tower.requires_grad_(False)
        if self.head is not None and model.lm_head.weight is not model.get_input_embeddings().weight:
            model.lm_head.requires_grad_(False)  # the answer head speaks; words are said by it as it is
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})

    def unread(self) -> Iterator[tuple[str, Tensor]]:
        """What `Weights` has, by the names that the parameters have here."""
        if self._weights is not None:
            for name in self.vlm.state_dict():
                if (theirs := name.replace(".base_layer.", ".")) in self._weights:
                    yield f"vlm.{name}", self._weights[theirs]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The language model's decoder layers."""
        model: Any = self.vlm
        return list(model.model.language_model.layers)

    def prepare(self, batch: Batch) -> Batch:
        """With ids and segments [B, P], positions [B, P] or [B, 3, P], pixels and grid sizes, each by sample."""
        if batch.lengths:
            return batch
        status, command = batch.status.cpu(), batch.command.tolist()
        vision, counts = self._vision(batch.images.cpu())
        with _TOKENIZING:
            told = [whole(question) for question in batch.asked] or map(prompt_text, status, command)
            times = taken([*range(batch.frames)][::-1] * (batch.images.shape[1] // batch.frames))
            rows = [self._row(times + text, count) for text, count in zip(told, counts, strict=True)]
        lengths = tuple(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), max(lengths)), self._placeholder, dtype=torch.long)
        segments = torch.full((len(rows), max(lengths)), int(Segment.PAD))
        for i, (row_ids, row_segments) in enumerate(rows):
            ids[i, -lengths[i] :] = torch.tensor(row_ids)
            segments[i, -lengths[i] :] = torch.tensor(row_segments)
        made = {"ids": ids, "segments": segments, "positions": self._positions(ids, segments, vision), **vision}
        device = batch.images.device
        there = {name: value.to(device) for name, value in made.items()}
        return replace(batch, prepared={**batch.prepared, **there}, lengths=lengths)

    def prompt(self, batch: Batch) -> Prompt:
        """Ids, segments, positions and pixels of a batch, best one that `prepare` has seen on the CPU."""
        batch = self.prepare(batch)
        longest = max(batch.lengths)  # of these samples; they may have been prepared among others
        ids, segments, positions = (batch.prepared[name][..., -longest:] for name in ("ids", "segments", "positions"))
        vision = {name: batch.prepared[name].flatten(0, 1) for name in _VISION if name in batch.prepared}
        positions = positions if positions.ndim == 2 else positions.transpose(0, 1)
        padding: Literal["none", "left"] = "none" if min(batch.lengths) == longest else "left"
        return Prompt(segments, _Inputs(ids, positions, vision), bool(batch.asked), padding=padding)

    def _row(self, told: str, image_tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        start, end = self._image_ends()
        image = list(self._tokenizer(_OPENING, add_special_tokens=False).input_ids)
        for count in image_tokens:
            image += [start, *[self._image_id] * count, end]
        text = self._tokenizer(told + _CLOSING, add_special_tokens=False).input_ids
        parts = [(Segment.IMAGE, image), (Segment.TEXT, text)]
        for segment, kind in ((Segment.WM, "wm"), (Segment.GEO, "geo")):
            parts.append((segment, [self._placeholder] * self.latents.counts[kind]))
        parts.append((Segment.ANSWER, self._header))
        return [t for _, ids in parts for t in ids], [int(s) for s, ids in parts for _ in ids]

    @property
    def _placeholder(self) -> int:
        """An id whose embedding is never seen: it is replaced, or masked."""
        return int(self._header[0])

    def _image_ends(self) -> tuple[int, int]:
        names = ("<img>", "</img>") if self._family == "internvl" else ("<|vision_start|>", "<|vision_end|>")
        first, last = (int(self._tokenizer.convert_tokens_to_ids(n)) for n in names)
        return first, last

    def _vision(self, images_BV3hw: Tensor) -> tuple[dict[str, Tensor], list[list[int]]]:
        """What the vision tower takes, by sample, and the image tokens of each view of each sample.

        Images of one batch have one size, so each sample has as many tiles or patches as any other.
        """
        b, views = images_BV3hw.shape[:2]
        images = [image.permute(1, 2, 0).numpy() for image in images_BV3hw.flatten(0, 1)]
        settings: Any = self.vlm.config
        if self._family == "internvl":
            tiles = {"crop_to_patches": True, "max_patches": self.config.tiles} if self.config.tiles > 1 else {}
            made = self._processor(images=images, return_tensors="pt", **tiles)
            per = [int(n) for n in made["num_patches"]] if tiles else [1] * len(images)
            counts = [n * int(settings.image_seq_length) for n in per]
        else:
            made = self._processor(images=images, return_tensors="pt")
            merge = int(settings.vision_config.spatial_merge_size) ** 2
            counts = [int(t * h * w) // merge for t, h, w in made["image_grid_thw"].tolist()]
        vision = {name: made[name].unflatten(0, (b, -1)) for name in _VISION if name in made}
        return vision, [counts[i * views : (i + 1) * views] for i in range(b)]

    def _positions(self, ids: Tensor, segments: Tensor, vision: Mapping[str, Tensor]) -> Tensor:
        there = (segments != Segment.PAD).long()
        if self._family == "internvl":
            return (there.cumsum(1) - 1).clamp_min(0)
        model: Any = self.vlm
        positions, _ = model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self._image_id).int(),
            image_grid_thw=vision["image_grid_thw"].flatten(0, 1),
            attention_mask=there,
        )
        by_sample: Tensor = positions.transpose(0, 1).contiguous()
        return by_sample

    def run(self, prompt: Prompt, answers_BT: Tensor, mask: Tensor | None, cache: Any = None) -> States:
        """One pass over the whole sequence; without a mask padding is put behind each row, where nobody looks."""
        inputs: _Inputs = prompt.data
        scenes, end = inputs.ids.shape
        thoughts, answers = prompt.thoughts, answers_BT.reshape(scenes * prompt.group, -1)
        more = torch.arange(1, answers.shape[1] + 1, device=inputs.ids.device)
        more = torch.cat(((thoughts >= 0).cumsum(1), prompt.thought_lengths + more), 1).reshape(scenes, -1)
        positions = torch.cat((inputs.positions, inputs.positions[..., -1:] + more), -1)
        latents = self.latents(scenes)
        ids, motions = self._answer_inputs(thoughts.shape[1], answers, prompt.asks)
        ids = torch.cat((self._answer_inputs(0, thoughts, True)[0], ids), 1)
        injected = [(end - self.prefix - latents.shape[1], latents)]
        for begin, values in motions:  # of each answer by itself, where a thought stands between them
            apart = values.reshape(scenes, prompt.group if thoughts.shape[1] else 1, -1, self.width).unbind(1)
            injected += [(end + begin + i * ids.shape[1], part) for i, part in enumerate(apart)]
        ids = torch.cat((inputs.ids, ids.reshape(scenes, -1)), 1)
        if mask is not None or prompt.padding == "none":
            return self._pass(ids, positions, mask, cache, injected, inputs.vision)
        padded = (prompt.segments == Segment.PAD).sum(1, keepdim=True)
        there = torch.arange(ids.shape[1], device=ids.device)
        order, back = (there + padded) % ids.shape[1], (there - padded) % ids.shape[1]
        ids, positions = ids.gather(1, order), positions.gather(-1, order.expand_as(positions))
        states = self._pass(ids, positions, None, None, injected, inputs.vision, back)
        back_BL1 = back.unsqueeze(2)
        return States(states.last.take_along_dim(back_BL1, 1), states.aligned.take_along_dim(back_BL1, 1))

    def step(self, prompt: Prompt, token_B1: Tensor, index: int, mask: Tensor, cache: Any) -> States:
        """One token."""
        positions = prompt.data.positions[..., -1:] + prompt.thought_lengths + 1 + index
        ids, motions = self._answer_inputs(0, token_B1, prompt.asks)
        return self._pass(ids, positions, mask, cache, motions, {})

    def repeated(self, prompt: Prompt, cache: Any, times: int) -> Prompt:
        """The last position, which is all that a token's own is counted from."""
        cache.batch_repeat_interleave(times)
        ids, positions = prompt.data.ids[:, -1:], prompt.data.positions[..., -1:]
        data = _Inputs(ids.repeat_interleave(times, 0), positions.repeat_interleave(times, -2), {})
        return replace(prompt, segments=prompt.segments.repeat_interleave(times, 0), data=data)

    def _answer_inputs(self, begin: int, answers_BT: Tensor, asks: bool) -> tuple[Tensor, list[tuple[int, Tensor]]]:
        """Ids of answer tokens, and what is injected from `begin` on for those that are no words of the model."""
        if self.head is None or asks:
            return torch.where(answers_BT >= 0, answers_BT, self._placeholder), []
        return torch.full_like(answers_BT, self._placeholder), [(begin, self.head.embed(answers_BT))]

    def _inject(self, _module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        """Hook of the input embedding: learned inputs in place of the placeholders'."""
        for begin, values in self._injected:
            end = begin + values.shape[1]
            if self._moved is None:
                out = torch.cat((out[:, :begin], values.to(out.dtype), out[:, end:]), 1)
            else:
                at = self._moved[:, begin:end].unsqueeze(2).expand_as(values)
                out = out.scatter(1, at, values.to(out.dtype))
        return out

    def _pass(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: Any,
        injected: list[tuple[int, Tensor]],
        vision: Mapping[str, Tensor],
        moved: Tensor | None = None,
    ) -> States:
        """`injected` is what stands from a place on; `moved` int64 [B, L] says where each place is now; None: there."""
        model: Any = self.vlm
        deep = self._align != len(self.blocks)
        own: Any = mask
        if mask is None and self._family == "internvl":  # which would ask the device whether sequences were packed
            own = dict.fromkeys(model.config.text_config.layer_types)
        self._injected, self._moved = injected, moved
        try:
            with self._recomputing(cache is None and torch.is_grad_enabled()):
                out = model.model(
                    input_ids=ids,
                    attention_mask=own,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=cache is not None,
                    output_hidden_states=deep,
                    **vision,
                )
        finally:
            self._injected, self._moved = [], None
        last: Tensor = out.last_hidden_state
        return States(last, out.hidden_states[self._align] if deep else last)

    @contextmanager
    def _recomputing(self, wanted: bool) -> Iterator[None]:
        """Gradient checkpointing in eval mode too, where GRPO has gradients and transformers would not recompute.

        The layers alone are told that they train; what is in them (dropout, attention) stays in eval mode.
        """
        resting = [b for b in self.blocks if not b.training] if wanted and self.config.gradient_checkpointing else []
        for block in resting:
            block.training = True
        try:
            yield
        finally:
            for block in resting:
                block.training = False

    def logits(self, hidden: Tensor, asks: bool = False) -> Tensor:
        """Of the answer head, or of the model's own; there, image tokens are never said (they stand for pixels)."""
        if self.head is not None and not asks:
            return self.head.logits(hidden)
        model: Any = self.vlm
        return torch.index_fill(model.lm_head(hidden), -1, self.never_said, _NEVER)

    def new_cache(self) -> Any:
        """Transformers' growing cache."""
        from transformers import DynamicCache

        return DynamicCache()


def load_tokenizer(config: HFConfig) -> Any:
    """The tokenizer of a pretrained student."""
    from transformers import AutoTokenizer

    with fetching(config.model, config.revision) as options:
        return AutoTokenizer.from_pretrained(config.model, **options)


def outline(config: HFConfig, answers: Answers, counts: Mapping[str, int]) -> HFStudent:
    """The student without its weights, on the meta device: to be counted, and to prepare batches."""
    with fetching(config.model, config.revision) as options:
        model, processor = bare(config.model, getattr(torch, config.dtype), options), _image_processor(config, options)
    tokenizer = load_tokenizer(config)
    with torch.device("meta"):
        return HFStudent(model, tokenizer, processor, config, answers, counts)


def load(config: HFConfig, answers: Answers, counts: Mapping[str, int], *, unread: bool = False) -> HFStudent:
    """A pretrained student; `unread` leaves its weights on the disk."""
    with fetching(config.model, config.revision) as options:
        model, weights = fetched(config.model, getattr(torch, config.dtype), options, unread=unread)
        processor = _image_processor(config, options)
    return HFStudent(model, load_tokenizer(config), processor, config, answers, counts, weights)


def _image_processor(config: HFConfig, options: Mapping[str, Any]) -> Any:
    """Alone, since AutoProcessor would need torchvision."""
    from transformers import AutoImageProcessor

    images: Any = AutoImageProcessor
    return images.from_pretrained(config.model, **options)
