"""The summary of a run of TF-CLIP."""

from ccafl_jax.methods.progress import Progress
from ccafl_jax.methods.tfclip.config import TFCLIPConfig


def summarize(
    progress: Progress, config: TFCLIPConfig, *, dataset: str, tracklets: int, seconds: float
) -> dict:
    """What `summary.json` holds; its headline `final` is the last epoch, never the best one.

    Args:
      progress: of a run that is done.
      config: its options.
      dataset: name of the data set.
      tracklets: that it was trained on, or pieces of them.
      seconds: spent.
    """
    last = (progress.stages or [progress.zero_shot])[-1]
    comparable = config.published_on in ("", dataset)
    return {
        "method": "tfclip",
        "zero_shot": progress.zero_shot,
        "stages": progress.stages,
        "final": {k: v for k, v in last.items() if k not in ("name", "checkpoint", "seconds")},
        "seconds": seconds,
        "published": config.published if comparable else "",
        "dataset": dataset,
        "train_tracklets": tracklets,
    }
