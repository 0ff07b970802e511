"""Compares PyTorch's features with stored ones; started by export_parity.py.

    /path/to/torch/bin/python benchmarks/torch_features.py FOLDER

FOLDER has two exports, `safetensors` and `timm`, and for each case a file <size>_<mask>.npz with
images (batch, row, column, channel), blocks (block, batch, token, width) and tokens. For each case
and each way it prints a line of JSON with the largest absolute differences.
"""

import json
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import torch

Run = Callable[[torch.Tensor, str], tuple[torch.Tensor, list[torch.Tensor]]]


def from_file(folder: pathlib.Path, size: int) -> Run:
    """The exported PyTorch module, for any size."""
    del size
    sys.path.insert(0, str(folder))
    from darl_vit import load  # type: ignore[import-not-found]

    model = load()

    def run(images: torch.Tensor, mask: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features = model(images, mask)
        return features.tokens, features.blocks

    return run


def from_timm(folder: pathlib.Path, size: int) -> Run:
    """timm's own class, built for one size."""
    import timm  # type: ignore[import-not-found]

    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(
        config["architecture"],
        checkpoint_path=str(folder / "model.safetensors"),
        **(config["model_args"] | {"img_size": size}),
    ).eval()

    def run(images: torch.Tensor, mask: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        tokens, features = model.forward_intermediates(
            images, output_fmt="NLC", return_prefix_tokens=True, is_causal=mask == "causal"
        )
        return tokens, [torch.cat([sos, rest], dim=1) for rest, sos in features]

    return run


def compare(run: Run, case: pathlib.Path, mask: str) -> dict[str, float]:
    """Largest absolute differences to the stored features, and the largest feature."""
    with np.load(case) as file:
        expected = {name: torch.from_numpy(file[name]) for name in ("images", "tokens", "blocks")}
    with torch.inference_mode():
        tokens, blocks = run(expected["images"].permute(0, 3, 1, 2), mask)
    pairs = zip(blocks, expected["blocks"], strict=True)
    return {
        "tokens": (tokens - expected["tokens"]).abs().max().item(),
        "blocks": max((ours - theirs).abs().max().item() for ours, theirs in pairs),
        "largest": expected["blocks"].abs().max().item(),
    }


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    cases = sorted(folder.glob("*_*.npz"))
    for way, load in (("safetensors", from_file), ("timm", from_timm)):
        sizes = sorted({int(case.stem.split("_")[0]) for case in cases})
        for size in sizes:
            try:
                run = load(folder / way, size)
            except ImportError as error:
                print(json.dumps({"way": way, "error": str(error)}), flush=True)
                break
            for case in cases:
                if case.stem.startswith(f"{size}_"):
                    mask = case.stem.split("_")[1]
                    answer = {"way": way, "size": size, "mask": mask} | compare(run, case, mask)
                    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
