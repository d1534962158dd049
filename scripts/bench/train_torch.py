"""The PyTorch side of train.py: the bare training step of the same network, timed the same way.

Forward, backward and Adam with coupled L2: the tower of timm with the pooling and the batch-norm
neck of this package, channels_last, autocast, compiled unless the request says off or compiling
fails. Run by train.py in a process of its own; prints one JSON object. Needs torch and timm, and
nothing of this package.
"""

import argparse
import json
import time
import warnings

import encoders_torch

EXAMPLES = """\
examples:
  python scripts/bench/train_torch.py '{"family": "RN50", "batch": 128, ...}'
"""


def main() -> None:
    """Prints the figures of the request, or `error`."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("request", type=json.loads, help="a JSON object")
    request = parser.parse_args().request
    warnings.filterwarnings("ignore")
    try:
        import timm
        import torch
    except Exception as error:  # not there, or parts of it that do not fit each other
        encoders_torch.report({"error": f"not compared: {error}"})
        return
    if request["device"] == "cuda" and not torch.cuda.is_available():
        encoders_torch.report({"error": "not compared: torch sees no GPU"})
        return
    torch.manual_seed(0)
    # float32 means float32 here as it does on the other side.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    device = torch.device(request["device"])
    found = {"torch": torch.__version__, "timm": timm.__version__}
    mode = request["compile"]
    try:
        found |= measure(torch, timm, device, request, mode)
    except Exception as error:  # another version of Triton or of the driver
        if mode == "off":
            raise
        found["note"] = f"eager, for torch.compile failed: {type(error).__name__}: {error}"[:300]
        torch.compiler.reset()
        found |= measure(torch, timm, device, request, "off")
    encoders_torch.report(found)


def measure(torch, timm, device, request: dict, mode: str) -> dict:
    """Seconds of a step."""
    size, joint = tuple(request["size"]), request["embed_dim"]
    resnet = not request["family"].startswith("ViT")
    if request["family"] == "ResNet-50":  # of ImageNet, without a joint space
        name, tower = "resnet50", timm.create_model("resnet50", num_classes=0, global_pool="")
        tower.layer4[0].conv2.stride = tower.layer4[0].downsample[0].stride = (1, 1)
    else:
        name, tower = encoders_torch.build(timm, request["family"], size, joint)
        if resnet:
            encoders_torch.fit_positions(torch, tower, size)
    parts = torch.nn.Module()
    parts.tower = tower
    parts.neck = torch.nn.BatchNorm1d(tower.num_features + (0 if resnet else joint))
    parts.neck.bias.requires_grad_(False)
    if resnet:
        parts.exponent = torch.nn.Parameter(torch.tensor(3.0))
    parts = parts.to(device).to(memory_format=torch.channels_last).train()
    images = torch.randn(request["batch"], 3, *size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    half = torch.autocast(device.type, torch.bfloat16, enabled=request["dtype"] == "bfloat16")

    def features(images):
        last = tower.forward_features(images)
        g = tower.forward_head(last).float() if joint else None
        if resnet:
            p = parts.exponent
            pooled = last.float().clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)
        else:
            pooled = torch.cat([last[:, 0].float(), g], dim=1)
        f = torch.nn.functional.normalize(parts.neck(pooled), dim=1)
        return (f, g) if joint else (f,)

    if mode != "off":
        features = torch.compile(features, mode=mode, fullgraph=False, dynamic=False)
    trained = [parameter for parameter in parts.parameters() if parameter.requires_grad]
    fused = {"fused": True} if device.type == "cuda" else {}
    optimizer = torch.optim.Adam(trained, lr=1e-7, weight_decay=5e-4, **fused)
    dims = (parts.neck.num_features, joint) if joint else (parts.neck.num_features,)
    weights = [torch.randn(request["batch"], dim, device=device) for dim in dims]

    def step():
        optimizer.zero_grad(set_to_none=True)
        with half:
            found = features(images)
        sum((x.float() * weight).sum() for x, weight in zip(found, weights, strict=True)).backward()
        optimizer.step()

    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = encoders_torch.seconds(torch, step, device, request)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {
        "model": name,
        "mode": "eager" if mode == "off" else f"compiled ({mode})",
        "first_step_seconds": first,
        "seconds": seconds,
        "peak_bytes": peak,
    }


if __name__ == "__main__":
    main()
