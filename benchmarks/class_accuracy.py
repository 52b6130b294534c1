"""How many samples of a run a convolutional classifier reads right: fitted here, on the run's own real data.

    python benchmarks/class_accuracy.py runs/mnist [-n 1000] [--guidance 1 2] [--steps 20] [--epochs 3]

Prints the classifier's accuracy on the real held-out set first: it says how far the others can be trusted.
"""

import argparse

import torch
from torch import Tensor, nn

import unfog
from unfog.data.source import Source
from unfog.training.machine import arithmetic, choose_precision


def network(channels: int, classes: int) -> nn.Module:
    """Return a small classifier."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, classes))


def encoded(source: Source) -> tuple[Tensor, Tensor]:
    """Return all rows of a set on [-1, 1], and their labels."""
    batch = source.take(torch.arange(len(source)).numpy())
    assert batch.labels is not None
    return batch.x.float() / 127.5 - 1, batch.labels


def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Return the share that is read right."""
    with torch.inference_mode():
        read = torch.cat([model(part).argmax(1) for part in x.split(500)])
    return float((read == labels).float().mean())


def main() -> None:
    """Fit, read, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0, 2.0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    run = unfog.load(arguments.run)
    torch.manual_seed(0)
    data = run.recipe.build_data()[1]
    x, labels = encoded(data.train)
    model = network(x.shape[1], len(run.recipe.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    steps = arguments.epochs * len(x) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    device = torch.device("cpu")
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        with arithmetic(choose_precision("auto", device, tuple(x.shape[1:])), device):
            loss = nn.functional.cross_entropy(model(x[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    print(f"real held-out: {accuracy(model, *encoded(data.heldout)):.2%} of {len(data.heldout)}")
    for scale in arguments.guidance:
        samples = run.sample(arguments.n, guidance=scale, steps=arguments.steps)
        wanted = torch.arange(arguments.n) % len(run.recipe.classes)
        score = accuracy(model, samples.float() / 127.5 - 1, wanted)
        print(f"samples, guidance {scale:g}, {arguments.steps} steps: {score:.2%} of {arguments.n}")


if __name__ == "__main__":
    main()
