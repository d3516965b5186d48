"""Training of BGE-M3's kind of model by the paper's recipe (arXiv 2402.03216, section 3.3).

from m3fast.train import read_config, train
train(read_config(Path("run.toml")))
"""

from m3fast.train.config import DataFile, TrainConfig, read_config
from m3fast.train.loop import train

__all__ = ["DataFile", "TrainConfig", "read_config", "train"]
