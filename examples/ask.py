"""Ask an exported language model the same thing with and without an adapter: numpy, onnxruntime and tokenizers, no torch.

polyadapt run examples/text-lora.toml
python examples/ask.py runs/text-lora/bundle "What is a boat?"
"""

from __future__ import annotations

import argparse
import sys

from polyadapt_runtime import Bundle, BundleError

QUESTIONS = ("What is a boat?", "Why is the night dark?", "How do clocks work?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--artifact", default="clerk")
    parser.add_argument("--template", default="A traveller asks: {} The clerk answers:", help="how the training rows ask")
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    bundle = Bundle(given.bundle, device="cpu")
    for question in given.questions:
        prompt = given.template.format(question)
        print(question)
        for name in (None, given.artifact):
            answer = bundle.generate(prompt, given.tokens, artifact=name)
            print(f"  {name or 'base'}: {' '.join(answer.split())}")
    print("torch was imported" if "torch" in sys.modules else "without torch")


if __name__ == "__main__":
    try:
        main()
    except BundleError as error:
        sys.exit(f"error: {error}")
