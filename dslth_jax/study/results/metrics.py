"""The numbers in a row of metrics, by their names."""

METRICS = {  # what a row of them has beside its round, and what tables call it
    "accuracy_mean": "mean accuracy, %", "accuracy_worst": "worst agent, %", "accuracy_best": "best agent, %",
    "accuracy_std": "spread (std), %", "validation_mean": "mean validation accuracy, %",
    "validation_worst": "worst agent's validation, %",
    "loss": "loss, nats", "density": "density", "flip_rate": "bits unlike the mask sent last, %",
    "agreement": "agreement of masks", "agreement_common": "agreement, classes in common",
    "agreement_apart": "agreement, no class in common",
    "score_spread": "spread of scores", "score_spread_common": "spread of scores, classes in common",
    "score_spread_apart": "spread of scores, no class in common",
    "bitmap_bits": "sent as bitmaps, MB", "kept_bits": "kept entries (the authors' count), MB",
    "coded_bits": "entropy-coded, MB", "float32_bits": "sent as float32, MB", "busiest_agent_bits": "busiest agent, MB",
    "exchanges": "exchanges", "coded_rounds": "of them really coded", "seconds": "training, s",
    "simulated_seconds": "simulated, s", "idle_seconds": "simulated, waiting for others, s",
    "retention_mean": "mean retention",
}  # fmt: skip
VALIDATION = ("validation_mean", "validation_worst")  # rows have them where samples are held back
PAIRS = ("", "_common", "_apart")
ALIKE = tuple(name + pairs for name in ("agreement", "score_spread") for pairs in PAIRS)  # rows have them since 0.5
TIMED = ("simulated_seconds", "idle_seconds", "retention_mean")  # rows have numbers there where time is simulated
PERHAPS = (*VALIDATION, *ALIKE, *TIMED)  # what rows may lack
ALIVE = "alive"  # the share of channels that live, and with a layer behind it "alive/conv1"; where any may die


def is_of_channels(key: str) -> bool:
    """Whether a number of this name says which channels live."""
    return key == ALIVE or key.startswith(f"{ALIVE}/")
