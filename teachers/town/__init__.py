"""Weights that ship with the project: small networks trained on the generated town, which know it and nothing else.

`model.safetensors` is VGGT of the size ``town``; `config.json` and `diffusion_pytorch_model.safetensors` are CV8x8x8.
Both are in float16, made by ``python -m jobs.pretrain`` (`pretraining`), Apache-2.0 like the code; `card.json` says
how, and what they know of drives that they have not seen. A config names them as ``weights: {town: true}``.
"""
