"""The module contract: a parameter is read in the forward of the module that owns it, and that module is called.

So whatever people put around a module works, for every scheme: offloading, adapters, hooks, noise on embeddings,
per-sample gradients, gradients of gradients.
"""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from opacus import PrivacyEngine
from peft import LoraConfig, get_peft_model
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)
from transformers import AutoModel
from transformers.integrations.neftune import activate_neftune

from heads import HEADS, LOSSES
from helpers import CASES, over, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeForMaskedLM, HfRopeForSequenceClassification, HfRopeModel
from hf_rope.model.layout import is_observed

IDS = torch.arange(5, 16)[None]
TYPES = (IDS > 9).long()


def padded_batch(rows: int = 3, length: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask: each row one token shorter than the one before."""
    mask = (torch.arange(length) < length - torch.arange(rows)[:, None]).long()
    return token_ids(rows, length) * mask, mask


@over(case=CASES, place=["memory", "disk"], typed=[True, False])
def test_offloaded_weights_give_the_same_outputs(case, place, typed, tmp_path):
    model, types = tiny_model(case), TYPES if typed else None
    with torch.no_grad():
        expected = model(IDS, token_type_ids=types).last_hidden_state
        if place == "memory":
            cpu_offload(model, execution_device="cpu")
        else:
            disk_offload(model, tmp_path, execution_device="cpu")
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert torch.equal(model(IDS, token_type_ids=types).last_hidden_state, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_adapter_on_any_layer_or_table_counts(scheme):
    """LoRA on each linear layer and each table by itself changes the output, and merging keeps the change."""
    model, ids = tiny_model(scheme), token_ids(2, 11)
    names = [
        name
        for name, module in model.named_modules()
        if type(module) in (torch.nn.Linear, torch.nn.Embedding) and "pooler" not in name
    ]
    assert {"embeddings.token_type_embeddings", "layers.0.attention.query"} <= {*names}
    with torch.no_grad():
        before = model(ids).last_hidden_state
        for name in names:
            lora = LoraConfig(target_modules=[name], init_lora_weights=False)
            adapted = get_peft_model(copy.deepcopy(model), lora).eval()
            found = adapted(input_ids=ids).last_hidden_state
            assert (found - before).abs().max() > 1e-3, name
            zeros = adapted(input_ids=ids, token_type_ids=torch.zeros_like(ids)).last_hidden_state
            assert torch.equal(found, zeros), name
            merged = adapted.merge_and_unload()(input_ids=ids).last_hidden_state
            torch.testing.assert_close(merged, found, rtol=1e-4, atol=1e-4)


@over(case=CASES, padded=[False, True])
def test_hooks_see_with_and_without_gradients_what_the_module_gave(case, padded):
    model, (ids, mask) = tiny_model(case), padded_batch()
    mask = mask if padded else torch.ones_like(mask)
    names = [name for name, module in model.named_modules() if name and not isinstance(module, torch.nn.ModuleList)]
    names = [name for name in names if not name.endswith("attention.dropout")]  # attention functions read it
    seen = []
    for with_gradients in (True, False):
        hooks, outputs = [], {}
        for name in names:

            def keep(module, args, output, name=name, outputs=outputs):
                outputs.setdefault(name, output)  # a projection may be called again, for rows of a table

            hooks.append(model.get_submodule(name).register_forward_hook(keep))
        with torch.set_grad_enabled(with_gradients):
            model(ids, mask)
        for hook in hooks:
            hook.remove()
        seen.append({name: copied(output) for name, output in outputs.items()})
        assert {*seen[-1]} == {*names}
    for name in names:
        for one, other in zip(seen[0][name], seen[1][name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)
        if name.startswith("layers.") and ".position" not in name and ".features" not in name:
            assert seen[0][name][0].shape[:2] == ids.shape, name


def copied(output) -> list[torch.Tensor]:
    """The tensors in a module's output, however they are nested."""
    if isinstance(output, torch.Tensor):
        return [output.detach().clone()]
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in copied(part)]
    return []


ONLOOKERS = {
    "forward": lambda module: module.register_forward_hook(lambda *args: None),
    "before": lambda module: module.register_forward_pre_hook(lambda *args: None),
    "backward": lambda module: module.register_full_backward_hook(lambda *args: None),
    "before backward": lambda module: module.register_full_backward_pre_hook(lambda *args: None),
    "on all": lambda module: register_module_forward_hook(lambda *args: None),
    "before all": lambda module: register_module_forward_pre_hook(lambda *args: None),
    "backward of all": lambda module: register_module_full_backward_hook(lambda *args: None),
    "before backward of all": lambda module: register_module_full_backward_pre_hook(lambda *args: None),
}


@pytest.mark.parametrize("way", ONLOOKERS)
def test_transformers_own_hooks_do_not_count_as_an_onlooker_and_others_do(way):
    """They stay on the layers for good once hidden states were asked for."""
    model, (ids, mask) = tiny_model("rotary", HfRopeForMaskedLM).train(), padded_batch()
    labels = ids.masked_fill(mask == 0, -100)
    model(ids, mask, output_hidden_states=True)
    layers = model.model.layers
    assert any(layer._forward_hooks for layer in layers)
    assert not is_observed(layers)
    assert not model.model(ids, mask).last_hidden_state[mask == 0].any()
    assert model(ids, mask, labels=labels).logits is None
    for module, part in ((layers[1].output, layers), (model.lm_head.dense, model.lm_head)):
        hook = ONLOOKERS[way](module)
        assert is_observed(part)
        output = model(ids, mask, labels=labels)
        assert (output.logits is None) == (part is layers and "all" not in way)
        hook.remove()
        assert not is_observed(part)


def test_what_a_hook_on_all_modules_keeps_stays_as_it_was():
    """The activation writes over its input only where nobody has it."""
    model, ids = tiny_model("rotary"), token_ids(2, 9)
    kept, expected = [], []
    layer = model.layers[0]

    def keep(module, args, output):
        if module is layer.intermediate:
            kept.append(output)
            expected.append(output.clone())

    hook = register_module_forward_hook(keep)
    with torch.no_grad():
        model(ids)
    hook.remove()
    assert torch.equal(kept[0], expected[0])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_noise_on_embeddings_has_the_size_that_the_paper_gives_it(scheme):
    """NEFTune by Trainer's own hook: alpha / sqrt(L * D), the batch's L, not that of the tokens laid end to end."""
    model = tiny_model(scheme).train()
    ids, mask = token_ids(32, 32), torch.ones(32, 32, dtype=torch.long)
    mask[1:, -1] = 0
    noise = []
    activate_neftune(model, 5.0)
    words = model.get_input_embeddings()
    words.register_forward_hook(lambda module, args, output: noise.append(output - module.forward(*args)))
    model(ids, mask)
    largest = noise[0].abs().max().item()
    limit = 5 / (32 * model.config.hidden_size) ** 0.5
    assert 0.95 * limit < largest <= limit * (1 + 1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_padded_row_is_a_sample_of_its_own_for_opacus(scheme):
    """Its gradients a sample, over the layers, are those of each row alone."""
    model = tiny_model(scheme, HfRopeForSequenceClassification, num_labels=3).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".layers." in name and name.split(".")[-1] in ("weight", "bias")
    (ids, mask), labels = padded_batch(6), torch.arange(6) % 3
    alone = []
    for row in range(6):
        model.zero_grad()
        length = int(mask[row].sum())
        model(ids[row : row + 1, :length], labels=labels[row : row + 1]).loss.backward()
        alone.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    model.zero_grad()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    data = torch.utils.data.DataLoader([{"input_ids": row} for row in ids], batch_size=6)
    private, optimizer, _ = PrivacyEngine(accountant="rdp").make_private(
        module=model,
        optimizer=optimizer,
        data_loader=data,
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        grad_sample_mode="hooks",
    )
    private(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    trained = {name.removeprefix("_module."): p for name, p in private.named_parameters() if p.requires_grad}
    samples = {name: parameter.grad_sample for name, parameter in trained.items()}
    assert len(samples) >= 30
    for name, gradients in samples.items():
        expected = torch.stack([gradient[name] for gradient in alone])
        torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)


def loss_of(model, **inputs):
    """The loss as a function of parameters."""

    def loss(parameters, *rows):
        batch = {**inputs, **dict(zip(("input_ids", "labels"), rows, strict=False))}
        return functional_call(model, parameters, kwargs=batch).loss

    return loss


@over(scheme=SCHEMES, name=LOSSES)
def test_functional_gradients_are_those_of_backward(scheme, name):
    head = HEADS[name]
    model = head.build(scheme).train()
    inputs = {**head.batch(), **head.labels}
    model(**inputs).loss.backward()
    parameters = dict(model.named_parameters())
    found = grad(loss_of(model, **inputs))({key: p.detach() for key, p in parameters.items()})
    for key, parameter in parameters.items():
        if parameter.grad is not None:
            torch.testing.assert_close(found[key], parameter.grad, rtol=1e-4, atol=1e-5)


@over(case=CASES)
def test_gradient_penalties_are_those_of_finite_differences(case):
    """The gradient of |gradient|^2 along a direction, with tied embeddings, in training mode."""
    model = tiny_model(case, HfRopeForMaskedLM, attn_implementation="eager").double().train()  # sdpa has no second one
    ids, mask = padded_batch()
    words = model.get_input_embeddings().weight

    def penalty(loss: torch.Tensor) -> torch.Tensor:
        (first,) = torch.autograd.grad(loss, words, create_graph=True)
        return first.square().sum()

    def exact_loss() -> torch.Tensor:  # transformers' own is taken in float32
        real = mask.bool()
        return F.cross_entropy(model(ids, mask).logits[real], ids[real])

    direction = torch.randn(words.shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    slopes = []
    for loss in (exact_loss(), model(ids, mask, labels=ids).loss):
        words.grad = None
        penalty(loss).backward()
        slopes.append((words.grad * direction).sum())
    step, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            words.add_(sign * step * direction)
        values.append(penalty(exact_loss()).detach())
        with torch.no_grad():
            words.sub_(sign * step * direction)
    torch.testing.assert_close(slopes[0], (values[0] - values[1]) / (2 * step), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-3)


@over(case=CASES)
def test_gradients_a_sample_by_vmap_are_those_of_each_row(case):
    model = tiny_model(case, HfRopeForMaskedLM).double().train()
    ids = token_ids(3, 7)
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    loss = loss_of(model)
    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, ids[:, None], ids[:, None])
    for row in range(3):
        expected = grad(loss)(parameters, ids[row : row + 1], ids[row : row + 1])
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key][row], gradient, rtol=1e-7, atol=1e-7)


@over(case=CASES)
def test_several_values_of_one_parameter_at_once_give_what_each_gives(case):
    model, ids = tiny_model(case).double().eval(), token_ids(2, 7)
    for name in ("query", "key"):
        key = f"layers.0.attention.{name}.weight"
        values = torch.stack([model.get_parameter(key).detach() * factor for factor in (1, 2, 3)])

        def states(value, key=key):
            return functional_call(model, {key: value}, (ids,)).last_hidden_state

        with torch.no_grad():
            torch.testing.assert_close(vmap(states)(values), torch.stack([states(value) for value in values]))


@over(case=CASES)
def test_fewer_layers_of_a_checkpoint_are_its_first_ones(case, tmp_path):
    model, (ids, mask) = tiny_model(case), padded_batch()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(ids, mask, output_hidden_states=True).hidden_states[1][mask.bool()]
        for load in (HfRopeModel, AutoModel):
            shallow = load.from_pretrained(tmp_path, num_hidden_layers=1)
            assert len(shallow.layers) == 1
            found = shallow(ids, mask).last_hidden_state[mask.bool()]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    deeper, info = HfRopeModel.from_pretrained(tmp_path, num_hidden_layers=3, output_loading_info=True)
    assert len(deeper.layers) == 3
    assert all(key.startswith("layers.2.") for key in info["missing_keys"])
