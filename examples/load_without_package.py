"""Loads saved models in a process that cannot import hf_rope: the code comes from their folders.

python -I examples/load_without_package.py CLASSIFIER MASKED_LM REFERENCE.json

REFERENCE.json holds "sentences", the "logits" that the classifier must give for them, and "masked" sentences. Prints
one line of JSON: the greatest difference between the logits, and the words filled in.
"""

import json
import sys
from importlib.abc import MetaPathFinder

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline


class Absent(MetaPathFinder):
    """Makes `import hf_rope` fail, installed or not."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] == "hf_rope":
            raise ModuleNotFoundError(f"No module named {fullname!r}: blocked", name=fullname)


def main(classifier: str, masked_lm: str, reference_file: str) -> None:
    with open(reference_file) as file:
        reference = json.load(file)
    tokenizer = AutoTokenizer.from_pretrained(classifier, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(classifier, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model(**tokenizer(reference["sentences"], padding=True, return_tensors="pt")).logits
    difference = (logits - torch.tensor(reference["logits"])).abs().max().item()
    fill = pipeline("fill-mask", model=masked_lm, trust_remote_code=True, top_k=5, device="cpu")
    filled = {text: [word["token_str"] for word in fill(text)] for text in reference["masked"]}
    print(json.dumps({"difference": difference, "code": type(model).__module__, "filled": filled}))


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())
    main(*sys.argv[1:])
