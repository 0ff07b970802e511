"""Writes interchange.npz: features of random ViTs in timm, and their weights.

Run by hand in an environment with torch and timm (made with torch 2.13.0 and timm 1.0.31):

    python tests/golden/make_interchange.py

All models have width 16, 2 blocks, 2 heads, an MLP of 32 and patches of 2, and are trained on
images of 8 x 8 (a grid of 4 x 4). Every weight is random, biases and norms too. Keys, all float32:

    images/{8x8,4x12}                           (2, row, column, 3), standardized
    eva/weights/<name>                          timm.models.eva.Eva's, of vit_base_patch16_rope_224
    eva/{xy,ij,absolute,none}/<images>/<mask>   its blocks' outputs, (block, 2, token, 16): RoPE
                                                that has x or y first, learned positions alone
                                                ("absolute"), none
    vit/weights/<name>                          timm's VisionTransformer, with LayerScale and a head
    vit/8x8                                     its blocks' outputs
    mae/weights/<name>                          MAE's names: fixed positions and a decoder
    mae/8x8                                     its encoder's, with nothing masked

with <mask> causal or full. The smaller side of 4 x 12 has fewer patches than in training, and the
larger one more.
"""

import math
import pathlib

import numpy as np
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

WIDTH, DEPTH, HEADS, MLP_DIM, PATCH, SIDE, CLASSES = 16, 2, 2, 32, 2, 4, 5
IMAGES = {"8x8": (8, 8), "4x12": (4, 12)}
MASKS = ("causal", "full")

Arrays = dict[str, torch.Tensor]


def randomize(model: torch.nn.Module) -> None:
    """Every parameter away from its initial value, at a scale that keeps activations near 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = math.prod(parameter.shape[1:])
            scale = fan_in**-0.5 if parameter.ndim in (2, 4) else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)


def weights(prefix: str, model: torch.nn.Module) -> Arrays:
    return {f"{prefix}/weights/{name}": value for name, value in model.state_dict().items()}


def with_start_token(intermediates: list) -> torch.Tensor:
    """timm's patches and prefix tokens of each block as (block, batch, token, width)."""
    return torch.stack([torch.cat([prefix, x], dim=1) for x, prefix in intermediates])


def from_eva(images: Arrays) -> Arrays:
    kinds = {
        "xy": {"rope_grid_indexing": "xy"},
        "ij": {"rope_grid_indexing": "ij"},
        "absolute": {
            "use_rot_pos_emb": False,
            "use_abs_pos_emb": True,
            "no_embed_class": True,
        },
        "none": {"use_rot_pos_emb": False},
    }
    arrays: Arrays = {}
    state: Arrays = {}
    for kind in ("absolute", "xy", "ij", "none"):
        for size, x in images.items():
            if kind == "absolute" and size != "8x8":
                continue
            model = timm.create_model(
                "vit_base_patch16_rope_224",
                img_size=IMAGES[size],
                patch_size=PATCH,
                embed_dim=WIDTH,
                depth=DEPTH,
                num_heads=HEADS,
                mlp_ratio=MLP_DIM / WIDTH,
                num_classes=0,
                ref_feat_shape=(SIDE, SIDE),
                **kinds[kind],
            ).eval()
            if not state:
                randomize(model)
                for name, parameter in model.named_parameters():
                    if "gamma" in name:
                        parameter.data.fill_(1.0)
                state = model.state_dict()
                arrays |= weights("eva", model)
            model.load_state_dict(state, strict=kind == "absolute")
            for mask in MASKS:
                arrays[f"eva/{kind}/{size}/{mask}"] = with_start_token(
                    model.forward_intermediates(
                        x,
                        output_fmt="NLC",
                        return_prefix_tokens=True,
                        intermediates_only=True,
                        is_causal=mask == "causal",
                    )
                )
    return arrays


def vit(**kwargs: object) -> VisionTransformer:
    return VisionTransformer(
        img_size=2 * SIDE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=MLP_DIM / WIDTH,
        **kwargs,
    ).eval()


def mae_positions() -> torch.Tensor:
    """(1, 1 + patches, width): zeros, then sines and cosines of the column, and of the row."""
    table = np.zeros((1 + SIDE * SIDE, WIDTH))
    quarter = WIDTH // 4
    for row in range(SIDE):
        for column in range(SIDE):
            for i in range(quarter):
                frequency = 10_000.0 ** (-i / quarter)
                for half, coordinate in enumerate((column, row)):
                    entry = table[1 + row * SIDE + column, half * 2 * quarter :]
                    entry[i] = math.sin(coordinate * frequency)
                    entry[quarter + i] = math.cos(coordinate * frequency)
    return torch.tensor(table, dtype=torch.float32)[None]


def from_vits(images: Arrays) -> Arrays:
    scaled = vit(init_values=0.5, num_classes=CLASSES)
    encoder = vit(num_classes=0)
    arrays: Arrays = {}
    for name, model in (("vit", scaled), ("mae", encoder)):
        randomize(model)
        if name == "mae":
            model.pos_embed.data = mae_positions()
        arrays |= weights(name, model)
        arrays[f"{name}/8x8"] = with_start_token(
            model.forward_intermediates(
                images["8x8"],
                output_fmt="NLC",
                return_prefix_tokens=True,
                intermediates_only=True,
            )
        )
    decoder = {"decoder_embed.weight": (8, WIDTH), "decoder_pos_embed": (1, 17, 8)}
    for name, shape in ({"mask_token": (1, 1, 8)} | decoder).items():
        arrays[f"mae/weights/{name}"] = torch.randn(shape)
    return arrays


def main() -> None:
    torch.manual_seed(0)
    images = {name: torch.randn(2, 3, *size) for name, size in IMAGES.items()}
    with torch.no_grad():
        arrays = from_eva(images) | from_vits(images)
    arrays |= {f"images/{name}": x.permute(0, 2, 3, 1) for name, x in images.items()}
    path = pathlib.Path(__file__).with_name("interchange.npz")
    np.savez_compressed(path, **{name: x.float().numpy() for name, x in arrays.items()})


if __name__ == "__main__":
    main()
