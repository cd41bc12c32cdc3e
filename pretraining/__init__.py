"""How the small networks that ship with the project came by their weights (`teachers/town`).

    footage -> geometry   (VGGT: losses, windows, steps)    -> heldout -> shipped
            -> dynamics   (CV8x8x8: a video autoencoder)

They have seen drives of the generated town and nothing else. Networks are those of `teachers/`, which stay
inference-only: what trains them lives here. ``python -m jobs.pretrain`` does it.
"""
