"""The tensors of a 70-billion-parameter decoder (Llama 3's shapes) trained with AdamW in fp32, as giblet names them."""

from __future__ import annotations

from collections.abc import Iterator

Shape = tuple[int, ...]

HIDDEN, FEED_FORWARD, KEY_VALUE, VOCABULARY, LAYERS = 8192, 28672, 1024, 128256, 80


def parameters(layers: int = LAYERS, width: int = HIDDEN) -> dict[str, Shape]:
    """Name and shape of each parameter; 723 of them, 70.6 billion elements, at full size.

    `width` scales every dimension down for tests: 8192 is the real one.
    """

    def scaled(*shape: int) -> Shape:
        return tuple(size * width // HIDDEN for size in shape)

    def of_layers() -> Iterator[tuple[str, Shape]]:
        for layer in range(layers):
            block = f"layers.{layer}"
            for name in ("q_proj", "o_proj"):
                yield f"{block}.attention.{name}.weight", scaled(HIDDEN, HIDDEN)
            for name in ("k_proj", "v_proj"):
                yield f"{block}.attention.{name}.weight", scaled(KEY_VALUE, HIDDEN)
            for name in ("gate_proj", "up_proj"):
                yield f"{block}.mlp.{name}.weight", scaled(FEED_FORWARD, HIDDEN)
            yield f"{block}.mlp.down_proj.weight", scaled(HIDDEN, FEED_FORWARD)
            for name in ("attention_norm", "mlp_norm"):
                yield f"{block}.{name}.weight", scaled(HIDDEN)

    return {
        "embedding.weight": scaled(VOCABULARY, HIDDEN),
        **dict(of_layers()),
        "norm.weight": scaled(HIDDEN),
        "head.weight": scaled(VOCABULARY, HIDDEN),
    }


def sharded_tensors(layers: int = LAYERS, width: int = HIDDEN) -> dict[str, Shape]:
    """What FSDP shards over all ranks: the weights and AdamW's two moments."""
    found = parameters(layers, width)
    places = ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq")
    return {f"{place}.{name}": shape for place in places for name, shape in found.items()}


def replicated_tensors(layers: int = LAYERS) -> list[str]:
    """What every rank holds whole: AdamW's step of each parameter, one number."""
    return [f"optimizer.step.{name}" for name in parameters(layers)]
