"""A script for a process of its own: loads checkpoints by the code that they carry, and writes down what comes out.

Its argument is a JSON file: `package` ("absent", "present", or "late": imported after the first row), `inputs` and
`results` (files of torch.save), and `rows`, each with `source`, `auto`, `head`, `trust`, `settings` (of
from_pretrained) and `resave`, a folder to save to and load from again, or null.
"""

import importlib.abc
import json
import sys


class Block(importlib.abc.MetaPathFinder):
    """Makes the package impossible to import."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_rope":
            raise ModuleNotFoundError(f"{name} is blocked", name=name)


with open(sys.argv[1]) as file:
    job = json.load(file)
if job["package"] == "absent":
    sys.meta_path.insert(0, Block())
    try:
        importlib.import_module("hf_rope")
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError("the package is still there")
elif job["package"] == "present":
    importlib.import_module("hf_rope")

import torch  # noqa: E402
import transformers  # noqa: E402

inputs, results = torch.load(job["inputs"]), []
for row in job["rows"]:
    auto = getattr(transformers, row["auto"])
    settings = {"trust_remote_code": row["trust"], **row["settings"]}
    model, info = auto.from_pretrained(row["source"], output_loading_info=True, **settings)
    assert not model.training
    assert next(iter(model.parameters())).device.type == "cpu"
    result = {
        "module": type(model).__module__,
        "class": type(model).__name__,
        "strangers": sorted({*info["missing_keys"], *info["unexpected_keys"]}),
        "output": model(**inputs[row["head"]]).to_tuple(),
        "generated": model.generate(inputs["prompt"], max_new_tokens=5) if model.can_generate() else None,
        "encoded": model.base_model(**inputs["encoder"]).last_hidden_state,
    }
    if row["resave"]:
        model.save_pretrained(row["resave"])
        again = auto.from_pretrained(row["resave"], trust_remote_code=row["trust"])
        result["again"] = again(**inputs[row["head"]]).to_tuple()
    results.append(result)
    if job["package"] == "late":
        importlib.import_module("hf_rope")
if job.get("tokenizer"):
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["tokenizer"], trust_remote_code=True)
    results.append({"ids": tokenizer("the cat playing")["input_ids"]})
torch.save(results, job["results"])
