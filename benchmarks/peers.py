"""Other toolkits, each trained and sampled as its own example does it, behind one small interface.

Unconditional pictures in [-1, 1], grey ones of 28×28 pixels or colour ones of 32×32: every network here halves them
twice, so none needs padding, and is that of the toolkit's example but for the channels of its ends. Digits are not
mirrored, though two of the toolkits do so unasked. Installed by

    pip install -e '.[bench]'
    pip install --no-deps denoising-diffusion-pytorch smalldiffusion

where the second line leaves out torchvision, which both import and nothing here uses. All run in float32, as shipped.
"""

import importlib
import importlib.util
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor, nn

SHAPE = (1, 28, 28)
"""Of a grey picture: channels, height and width."""
PORTION = 128
"""Pictures that go through a network at a time, so that large batches fit the memory; no part of the result."""


class Peer(ABC):
    """A toolkit with a network in training.

    Attributes:
        name: What it is called.
        source: Where its settings are from.
        rate: Learning rate of its own example.
        size: Batch of its own example.
        tuned_size: Batch of the runs whose learning rate is tuned: ours, since half an hour holds few large ones.
        shape: Of a picture.
        network: What is trained, and called once for each evaluation.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    rate: ClassVar[float]
    size: ClassVar[int]
    tuned_size: ClassVar[int] = 64
    network: nn.Module

    def __init__(
        self, learning_rate: float | None = None, batch: int | None = None, shape: tuple[int, ...] = SHAPE
    ) -> None:
        """Build network, optimizer and average.

        Args:
            learning_rate: Its own if None.
            batch: Pictures in an optimizer step; its own if None.
            shape: Of a picture: channels, height and width.
        """
        self.learning_rate, self.batch, self.shape = learning_rate or self.rate, batch or self.size, shape
        self.build()

    def step(self, x0: Tensor) -> float:
        """Take an optimizer step on one batch, with averaging where the toolkit does that, and return the loss."""
        self.network.train()
        self.optimizer.zero_grad()
        total = 0.0
        for part in torch.split(x0, PORTION):
            loss = self.loss(part) * (len(part) / len(x0))
            torch.autograd.backward(loss)
            total += float(loss.detach())
        self.descend()
        return total

    @contextmanager
    def counted(self) -> Iterator[list[int]]:
        """Count the rows that go through the network."""
        rows = [0]

        def listen(module: nn.Module, given: tuple[Any, ...], output: object) -> None:
            rows[0] += len(given[0])

        listener = self.network.register_forward_hook(listen)
        try:
            yield rows
        finally:
            listener.remove()

    optimizer: torch.optim.Optimizer

    @abstractmethod
    def build(self) -> None:
        """Make network, optimizer and average."""

    @abstractmethod
    def loss(self, x0: Tensor) -> Tensor:
        """Return the mean loss of pictures in [-1, 1], with the toolkit's own times, noise and target."""

    def descend(self) -> None:
        """Move the weights, and the average after them."""
        self.optimizer.step()

    def averaged(self) -> dict[str, Tensor]:
        """Return the weights that the toolkit samples with."""
        return self.network.state_dict()

    @abstractmethod
    def sample(self, count: int, evaluations: int | None = None) -> Tensor:
        """Return pictures of the network as it stands, in [-1, 1].

        Args:
            count: Number of pictures.
            evaluations: Of the network for each; those of the toolkit's own sampler if None.
        """


class Lucidrains(Peer):
    """denoising-diffusion-pytorch: v, a sigmoid schedule of 1,000 steps, Adam; 1,000 ancestral steps, or DDIM.

    The network is that of its README halved twice: 32 channels, multiples of 1, 2 and 4. Its mixed precision of 16 bits
    needs a GPU. The average is that of its trainer, which copies the weights for the first hundred steps.
    """

    name = "lucidrains"
    source = "README of denoising-diffusion-pytorch 2.3.4 (batch 32 accumulated twice, 8e-5), and its Trainer"
    rate, size = 8e-5, 64

    def build(self) -> None:
        """Make network, optimizer and average."""
        self.toolkit = imported("denoising_diffusion_pytorch", "torchvision")
        self.network = self.toolkit.Unet(dim=32, dim_mults=(1, 2, 4), channels=self.shape[0])
        self.diffusion = self.toolkit.GaussianDiffusion(self.network, image_size=self.shape[-1])
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), lr=self.learning_rate, betas=(0.9, 0.99))
        average = importlib.import_module("ema_pytorch").EMA
        self.average = average(self.diffusion, beta=0.995, update_every=10, include_online_model=False)

    def loss(self, x0: Tensor) -> Tensor:
        """Return the loss; the toolkit takes pictures in [0, 1]."""
        return self.diffusion((x0 + 1) / 2)

    def descend(self) -> None:
        """Move the weights by a clipped gradient, and the average after them."""
        nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.optimizer.step()
        self.average.update()

    def averaged(self) -> dict[str, Tensor]:
        """Return the averaged network."""
        return self.average.ema_model.model.state_dict()

    def sample(self, count: int, evaluations: int | None = None) -> Tensor:
        """Return pictures."""
        side = self.shape[-1]
        made = self.toolkit.GaussianDiffusion(self.network.eval(), image_size=side, sampling_timesteps=evaluations)
        return made.sample(batch_size=count) * 2 - 1


class Smalldiffusion(Peer):
    """smalldiffusion: eps, 800 noise levels even in their logarithm, AdamW; 20 steps of DDIM with momentum 1.6.

    A batch of its example, 1,024 pictures, takes a minute on two cores, and half an hour holds some thirty steps. Its
    sampler stops at the lowest noise level, 0.01.
    """

    name = "smalldiffusion"
    source = "examples/fashion_mnist_unet.py of smalldiffusion 0.5.0"
    rate, size = 7e-4, 1024

    def build(self) -> None:
        """Make network, optimizer and average."""
        self.toolkit = imported("smalldiffusion", "torchvision")
        made, (channels, _, side) = self.toolkit.Scaled(self.toolkit.Unet), self.shape
        self.network = made(side, channels, channels, ch=64, ch_mult=(1, 1, 2), attn_resolutions=(side // 2,))
        self.schedule = self.toolkit.ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate)
        average = importlib.import_module("torch_ema").ExponentialMovingAverage
        self.average = average(self.network.parameters(), decay=0.999)

    def loss(self, x0: Tensor) -> Tensor:
        """Return the loss."""
        x0, sigma, eps, _ = self.toolkit.generate_train_sample(x0, self.schedule)
        return self.network.get_loss(x0, sigma, eps)

    def descend(self) -> None:
        """Move the weights, and the average after them."""
        self.optimizer.step()
        self.average.update()

    def averaged(self) -> dict[str, Tensor]:
        """Return the averaged weights; the network has no buffers."""
        with self.average.average_parameters():
            return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def sample(self, count: int, evaluations: int | None = None) -> Tensor:
        """Return pictures."""
        sigmas = self.schedule.sample_sigmas(evaluations or 20)
        accelerator = importlib.import_module("accelerate").Accelerator(cpu=True)
        *_, x0 = self.toolkit.samples(self.network, sigmas, gam=1.6, batchsize=count, accelerator=accelerator)
        return x0


class Diffusers(Peer):
    """diffusers, as its course trains on MNIST: eps, a cosine table of 1,000 steps, Adam, no average; DDPM, or DDIM.

    It is the course's second unit without its class embedding.
    """

    name = "diffusers"
    source = "Hugging Face diffusion course, unit 2 (MNIST: batch 128, Adam at 1e-3), with diffusers 0.42.1"
    rate, size = 1e-3, 128

    def build(self) -> None:
        """Make network, schedule and optimizer."""
        self.toolkit = imported("diffusers")
        self.network = self.toolkit.UNet2DModel(
            sample_size=self.shape[-1],
            in_channels=self.shape[0],
            out_channels=self.shape[0],
            layers_per_block=2,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
        self.table = self.toolkit.DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)

    def loss(self, x0: Tensor) -> Tensor:
        """Return the loss."""
        noise, timesteps = torch.randn_like(x0), torch.randint(0, 999, (len(x0),))
        predicted = self.network(self.table.add_noise(x0, noise, timesteps), timesteps, return_dict=False)[0]
        return nn.functional.mse_loss(predicted, noise)

    @torch.no_grad()
    def sample(self, count: int, evaluations: int | None = None) -> Tensor:
        """Return pictures."""
        self.network.eval()
        scheduler = self.table
        if evaluations is not None:
            scheduler = self.toolkit.DDIMScheduler.from_config(self.table.config)
            scheduler.set_timesteps(evaluations)
        x = torch.randn(count, *self.shape)
        for timestep in scheduler.timesteps:
            x = scheduler.step(self.network(x, timestep, return_dict=False)[0], timestep, x).prev_sample
        return x


PEERS: dict[str, type[Peer]] = {one.name: one for one in (Lucidrains, Smalldiffusion, Diffusers)}


def imported(name: str, needs: str | None = None) -> Any:
    """Import a toolkit; what it imports without need may be absent, and is hollow then while that takes."""
    hollow: dict[str, Any] = {}
    if needs and importlib.util.find_spec(needs) is None:
        hollow = {needs: MagicMock(), f"{needs}.transforms": MagicMock()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.modules.update(hollow)
        try:
            return importlib.import_module(name)
        finally:
            for key in hollow:
                del sys.modules[key]


def drawn(peer: Peer, count: int, evaluations: int | None, *, seed: int = 0, batch: int = 128) -> tuple[Tensor, int]:
    """Return pictures of a peer as stored, uint8 `(count, *shape)`, and the network's evaluations for each."""
    torch.manual_seed(seed)
    with peer.counted() as rows, patch("tqdm.std.tqdm.display"):
        found = torch.cat([peer.sample(min(batch, count - first), evaluations) for first in range(0, count, batch)])
    return ((found + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), rows[0] // count
