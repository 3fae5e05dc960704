"""Lightning as in its introduction: a LightningModule, torchvision's MNIST, a DataLoader; no logging, no bars."""

import logging
import warnings

import lightning
import torch
from contestant import BATCH, LR, dataset, serve
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Network(lightning.LightningModule):
    """784-256-128-10."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """(images, labels) -> the mean loss."""
        images, labels = batch
        loss: Tensor = nn.functional.cross_entropy(self.layers(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=LR)


def train(samples: int) -> tuple[int, float]:
    steps = min(samples // BATCH, len(loader))
    off = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, limit_train_batches=steps, **off)
    trainer.fit(network, loader)
    return steps * BATCH, float(trainer.callback_metrics["train_loss"])


warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
network, loader = Network(), DataLoader(dataset(), batch_size=BATCH, shuffle=True)
serve(train, lightning=lightning.__version__, torch=torch.__version__, threads=torch.get_num_threads())
