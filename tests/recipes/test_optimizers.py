"""Muon against torch's own, its matrices against a decomposition, and its state against a checkpoint."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import MakeRecipe
from unfog.networks.compact import Compact
from unfog.networks.conditioning import TextEncoder
from unfog.recipes.build import build_data
from unfog.recipes.optimizers import AdamW, Muon, as_matrix, orthogonal
from unfog.runtime.errors import UserError
from unfog.training.trainer import Trainer


def stepped(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> list[torch.Tensor]:
    """Take some steps along the same random gradients, and return the weights."""
    stream = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=stream)
        optimizer.step()
    return [parameter.detach().clone() for parameter in module.parameters()]


def layer(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(48, 96), nn.Linear(96, 40))


@pytest.mark.parametrize("square", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40, 40), (59, 40), (40, 60), (32, 200), (200, 32)])
def test_an_orthogonal_matrix_keeps_its_directions_and_loses_its_sizes(
    shape: tuple[int, int], square: torch.dtype
) -> None:
    """In bfloat16, of eight bits, directions are kept to a few hundredths."""
    draws = np.random.default_rng(0)
    left, _, right = np.linalg.svd(draws.standard_normal(shape), full_matrices=False)
    sizes = np.geomspace(1, 0.02, min(shape))
    matrix = torch.from_numpy(left * sizes @ right).float()
    inner = left.T @ orthogonal(matrix[None], square)[0].numpy() @ right.T
    rounded = square == torch.bfloat16 and 2 * max(shape) < 3 * min(shape)
    assert np.abs(inner - np.diag(np.diag(inner))).max() < (0.1 if rounded else 1e-4)
    assert np.diag(inner).min() > 0.6
    assert np.diag(inner).max() < 1.3


def test_the_size_of_a_gradient_does_not_matter() -> None:
    matrix = torch.randn(2, 40, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonal(matrix * 1e-12), orthogonal(matrix))
    assert orthogonal(torch.zeros(1, 40, 50)).abs().max() == 0


def test_matrices_step_as_in_torch() -> None:
    """The other implementation multiplies in bfloat16, so the steps agree to its 8 bits."""
    mine, other = layer(), layer()
    before = [parameter.detach().clone() for parameter in mine.parameters()]
    ours = stepped(mine, Muon(lr=1e-2, weight_decay=0.1).build(mine))
    matrices = [parameter for parameter in other.parameters() if parameter.ndim == 2]
    theirs = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for start, here, there in zip(before, ours, stepped(other, theirs), strict=True):
        if here.ndim == 2:
            assert (here - there).norm() < 0.03 * (here - start).norm()


def test_everything_else_steps_as_adamw() -> None:
    torch.manual_seed(0)
    thin = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Embedding(100, 64), nn.LayerNorm(64), nn.Conv2d(64, 3, 3))
    start = {name: value.clone() for name, value in thin.state_dict().items()}
    ours = stepped(thin, Muon(lr=1e-2).build(thin))
    thin.load_state_dict(start)
    for here, there in zip(ours, stepped(thin, AdamW(lr=1e-2).build(thin)), strict=True):
        assert torch.equal(here, there)


def test_adamw_is_torchs() -> None:
    """To the bit, and with its state."""
    mine, other = layer(), layer()
    ours = AdamW(lr=1e-2, weight_decay=0.1).build(mine)
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    for here, there in zip(stepped(mine, ours), stepped(other, theirs), strict=True):
        assert torch.equal(here, there)
    ours.load_state_dict(deepcopy(theirs.state_dict()))
    for here, there in zip(stepped(mine, ours), stepped(other, theirs), strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_no_compiler_is_imported(name: str) -> None:
    """Torch's optimizers import it at their first call, for a second, though nothing is compiled."""
    script = (
        "import sys, torch, unfog.recipes.optimizers as rooms\n"
        "module = torch.nn.Linear(40, 40)\n"
        f"optimizer = rooms.{name}().build(module)\n"
        "optimizer.zero_grad()\n"
        "module(torch.ones(1, 40)).sum().backward()\n"
        "optimizer.step()\n"
        "optimizer.load_state_dict(optimizer.state_dict())\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_rest_decays_as_it_is_told() -> None:
    """Without a gradient only the decay acts: (1 - lr·decay) a step, on tables and biases as on matrices."""
    module = torch.nn.ModuleDict({"table": torch.nn.Embedding(4, 3), "layer": torch.nn.Linear(48, 48)})
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    optimizer = Muon(lr=0.5, weight_decay=0.2).build(module)
    for weight in module.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in module.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] * (1 - 0.5 * 0.2), msg=name)


def test_hidden_layers_are_muons_and_the_rest_adamws() -> None:
    module = nn.ModuleDict({"network": Compact(3, width=32), "text": TextEncoder(32, width=64, layers=1, length=8)})
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    hidden, rest = ([names[id(one)] for one in group["params"]] for group in Muon().build(module).param_groups)
    assert {"network.middle.0.conv1.weight", "network.attention.0.qkv.weight", "text.pooled.weight"} <= set(hidden)
    assert {"text.remainder.weight", "network.patch_in.weight", "network.patch_out.weight"} <= set(rest)
    assert all(name.endswith("weight") for name in hidden if "in_proj" not in name)
    assert len(hidden) + len(rest) == len(names)


def test_a_kernel_is_the_matrix_of_its_outputs() -> None:
    kernel = torch.arange(24.0).view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    assert as_matrix(kernel).tolist() == torch.arange(24.0).view(2, 12).tolist()


def test_a_restored_training_goes_on_to_the_bit(tiny: MakeRecipe, tmp_path: Path) -> None:
    chosen, data = build_data(tiny("optimizer=muon", "network.width=32"))
    trainers = [Trainer(chosen, data, tmp_path, torch.device("cpu")) for _ in range(2)]
    for step in range(3):
        trainers[0].descend(trainers[0].draws(step))
    assert trainers[0].save()
    trainers[1].restore()
    for step in (3, 4):
        losses = {trainer.descend(trainer.draws(step)) for trainer in trainers}
        assert len(losses) == 1
    first, second = (trainer.denoiser.state_dict() for trainer in trainers)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_out_of_range_is_refused(momentum: float) -> None:
    with pytest.raises(UserError, match="optimizer.momentum"):
        Muon(momentum=momentum)
