"""The constants of stages 2 and 3, typed from the specification (2.4 to 2.9)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Defaults are Market-1501 in the preset `clean`."""

    rate: float = 1.7
    w: float = 0.6
    tau: float = 0.05
    coefficient: float = 0.1  # of the old memory
    triplet_margin: float = 0.3
    smoothing: float = 0.1
    smoothing_classes: int | None = None  # None: the number of clusters
    scale: float = 16.0
    epsilon: float = 0.8
    margin: float = 0.7
    inflation: float = 0.2
    inter_from: int = 5
    text_from: int = 10
    ical_from: int = 40
    ical_to: int = 50
    base_rate: float = 3.5e-4
    bias_factor: float = 2.0
    weight_decay: float = 5e-4
    classifier_rate: float = 3.5e-4
    centroid_update: str = "mean"
    cluster_update: str = "hard"
    decay_idle: bool = False  # 6.2 (6)
    bn_group: int = 64

    def stage(self, epoch: int) -> int:
        return 2 if epoch < self.inter_from else 3

    def has_text(self, epoch: int) -> bool:
        return self.stage(epoch) == 2 or epoch >= self.text_from

    def has_ical(self, epoch: int) -> bool:
        return self.stage(epoch) == 3 and self.ical_from <= epoch < self.ical_to

    def rate_of(self, epoch: int) -> float:
        """Warm-up over ten epochs; a tenth from epoch 40, a hundredth from epoch 50."""
        factor = 0.01 * (1 - epoch / 10) + epoch / 10 if epoch < 10 else 1.0
        if epoch >= 40:
            factor *= 0.1
        if epoch >= 50:
            factor *= 0.1
        return self.base_rate * factor


CLEAN = Recipe()
DUKE_RELEASE = Recipe(
    rate=1.5,
    w=0.6,
    text_from=40,
    ical_to=60,
    margin=0.3,
    smoothing_classes=4821,
    decay_idle=True,
)
MSMT17_RELEASE = Recipe(
    rate=1.3,
    w=0.0,
    text_from=40,
    ical_to=60,
    margin=0.5,
    smoothing_classes=4821,
    decay_idle=True,
)
