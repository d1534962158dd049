"""The PyTorch side of encoders.py: the same towers from timm, compiled, timed the same way.

Run by encoders.py in a process of its own, so that neither framework holds the other's memory.
Reads one JSON object, writes one JSON object a line: the environment first, then one a case. Needs
torch and timm, and nothing of this package.
"""

import argparse
import dataclasses
import json
import statistics
import time
import warnings

NAMES = {  # the activation of OpenAI's weights first
    "RN50": ("resnet50_clip",),
    "RN101": ("resnet101_clip",),
    "RN50x4": ("resnet50x4_clip",),
    "ViT-B/32": ("vit_base_patch32_clip_quickgelu_224", "vit_base_patch32_clip_224"),
    "ViT-B/16": ("vit_base_patch16_clip_quickgelu_224", "vit_base_patch16_clip_224"),
    "ViT-L/14": ("vit_large_patch14_clip_quickgelu_224", "vit_large_patch14_clip_224"),
}

EXAMPLES = """\
examples:
  python scripts/bench/encoders_torch.py '{"cases": [["RN50", 128]], ...}'
"""


def main() -> None:
    """Measures every case of the request; a case that fails says why and the next one runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("request", type=json.loads, help="a JSON object")
    request = parser.parse_args().request
    warnings.filterwarnings("ignore")
    import timm
    import torch

    if request["device"] == "cuda" and not torch.cuda.is_available():
        report({"error": "torch sees no GPU"})
        return
    torch.manual_seed(0)
    # float32 means float32 here as it does on the other side.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    device = torch.device(request["device"])
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    rate = matmul_rate(torch, device, request)
    report({"torch": torch.__version__, "timm": timm.__version__, "device": name, "matmul": rate})
    for family, batch in request["cases"]:
        case = {"family": family, "batch": batch}
        torch.compiler.reset()  # past its limit of recompilations it would run uncompiled
        try:
            case |= measure(torch, timm, family, batch, device, request)
        except Exception as error:  # another version of timm, or memory: the rest still runs
            case["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        report(case)


def measure(torch, timm, family: str, batch: int, device, request: dict) -> dict:
    """Seconds a call, forward in evaluation mode and forward+backward in training mode."""
    size, features = tuple(request["size"]), request["embed_dims"][family]
    name, model = build(timm, family, size, features)
    if family.startswith("RN"):
        fit_positions(torch, model, size)
    model = model.to(device).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, *size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)

    def both(images):
        last = model.forward_features(images)
        pooled = last.float().mean((2, 3)) if last.ndim == 4 else last[:, 0].float()
        return pooled, model.forward_head(last).float()

    if request["compile"] != "off":
        both = torch.compile(both, mode=request["compile"], fullgraph=False, dynamic=False)
    half = torch.autocast(device.type, torch.bfloat16, enabled=request["dtype"] == "bfloat16")
    model.eval()
    with torch.no_grad(), half:
        weights = [torch.randn_like(x) for x in both(images)]

    def forward():
        with torch.no_grad(), half:
            both(images)

    def train():
        for parameter in model.parameters():
            parameter.grad = None
        with half:
            first, second = both(images)
        ((first * weights[0]).sum() + (second * weights[1]).sum()).backward()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result = {"model": name, "forward": seconds(torch, forward, device, request)}
    model.train()
    result["train"] = seconds(torch, train, device, request)
    if device.type == "cuda":
        result["peak_memory"] = torch.cuda.max_memory_allocated()
    return result


def build(timm, family: str, size: tuple[int, int], features: int):
    """The tower of a family, with stride 1 in the last stage of a ResNet."""
    known = [name for name in NAMES[family] if timm.is_model(name)]
    if not known:
        raise ValueError(f"timm {timm.__version__} has none of {NAMES[family]}")
    options = {"num_classes": features}
    if family.startswith("RN"):
        from timm.models import byobnet

        blocks = byobnet.model_cfgs[known[0]].blocks
        options["blocks"] = (*blocks[:-1], dataclasses.replace(blocks[-1], s=1))
    else:
        options["img_size"] = size
    return known[0], timm.create_model(known[0], pretrained=False, **options)


def fit_positions(torch, model, size: tuple[int, int]) -> None:
    """Gives the attention pool positions of its own grid, so that no step resizes them."""
    from timm.layers import attention_pool2d

    grid = (size[0] // 16, size[1] // 16)
    model.eval()
    with torch.no_grad():
        found = tuple(model.forward_features(torch.zeros(1, 3, *size)).shape[-2:])
    if found != grid:
        raise ValueError(f"timm's last map is {found}, not {grid}: its last stride is not 1")
    head = model.head
    table = torch.randn(1 + grid[0] * grid[1], head.pos_embed.shape[-1]) * 0.02
    head.pos_embed = torch.nn.Parameter(table)
    attention_pool2d.resample_abs_pos_embed = lambda table, *_, **__: table


def matmul_rate(torch, device, request: dict) -> float:
    """FLOP/s of the large square product of encoders.py."""
    side, dtype = request["matmul_side"], getattr(torch, request["dtype"])
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(torch, lambda: a @ b, device, request)["median"]


def seconds(torch, run, device, request: dict) -> dict:
    """Median, smallest and largest seconds a call, as `seconds` of encoders.py."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        run()
    wait()
    start = time.perf_counter()
    run()
    wait()
    once = time.perf_counter() - start
    calls = max(1, min(200, round(request["window"] / max(once, 1e-9))))
    taken = []
    for _ in range(request["repeats"]):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait()
        taken.append((time.perf_counter() - start) / calls)
    return {"median": statistics.median(taken), "min": min(taken), "max": max(taken)}


def report(line: dict) -> None:
    """One JSON object a line, at once: what is measured survives a later failure."""
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
