"""Our U-Net against diffusers' with the same weights."""

import pytest
import torch

from unfog.interop import names

twins = pytest.importorskip("twins", reason="diffusers is not installed")


@pytest.mark.parametrize("name", ["course", "cifar10"])
def test_the_same_weights_give_the_same_output_and_gradient(name: str) -> None:
    torch.manual_seed(0)
    theirs, ours, shape = twins.twins(name)
    x, time = torch.randn(2, *shape), torch.tensor([3.0, 700.0])
    expected = theirs(x, time).sample
    found = ours(x, time)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    expected.square().mean().backward()
    found.square().mean().backward()
    gradients = {name: one.grad for name, one in theirs.named_parameters() if one.grad is not None}
    for one, weight in names.ours(gradients, ours, name).items():
        torch.testing.assert_close(ours.get_parameter(one).grad, weight, rtol=1e-3, atol=1e-5)
