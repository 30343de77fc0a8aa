"""param_groups: every trainable parameter once, at its scheme's rate, and as Trainer has them where rates are one."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from helpers import CASES, refused, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeForMaskedLM, param_groups

LR, DECAY = 1e-3, 0.1


def settings(groups) -> dict[nn.Parameter, tuple[float, float]]:
    """The learning rate and the weight decay of each parameter; fails where a parameter is in two groups."""
    pairs = [(x, (group["lr"], group["weight_decay"])) for group in groups for x in group["params"]]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def arguments(folder, **more) -> TrainingArguments:
    return TrainingArguments(folder, learning_rate=LR, weight_decay=DECAY, report_to="none", use_cpu=True, **more)


@pytest.mark.parametrize("case", CASES)
def test_where_positions_have_the_models_rate_the_groups_are_trainers(case, tmp_path):
    model = tiny_model(case, HfRopeForMaskedLM)
    model.lm_head.dense.weight.requires_grad_(False)
    expected = settings(Trainer(model, arguments(tmp_path)).create_optimizer().param_groups)
    assert settings(param_groups(model, LR, weight_decay=DECAY, position_lr=LR)) == expected
    assert model.lm_head.dense.weight not in expected


@pytest.mark.parametrize("case", CASES)
def test_positions_and_they_alone_have_another_rate(case):
    model = tiny_model(case, HfRopeForMaskedLM)
    found = settings(param_groups(model, LR, position_lr=0.5))
    rates = {name: found[parameter][0] for name, parameter in model.named_parameters()}
    assert rates == {name: 0.5 if ".position." in name else LR for name in rates}


@pytest.mark.parametrize("case", CASES)
def test_a_scheme_recommends_a_rate_for_its_own_parts(case):
    model = tiny_model(case, HfRopeForMaskedLM)
    found = settings(param_groups(model, LR))
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".position.")
        multipliers = model.get_submodule(f"{owner}.position").lr_multipliers if owner else {}
        assert found[parameter][0] == pytest.approx(LR * multipliers.get(own.split(".")[0], 1.0)), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_recommendation_is_for_a_part_that_there_is(scheme):
    model = tiny_model(scheme)
    for position in (model.position, model.layers[0].attention.position):
        assert [name for name in position.lr_multipliers if not hasattr(position, name)] == []
        assert all(multiplier > 0 for multiplier in position.lr_multipliers.values())


@pytest.mark.parametrize("name", ["lr", "weight_decay", "position_lr"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_numbers_that_no_optimizer_can_use_are_refused(name, value):
    refused(lambda: param_groups(tiny_model("t5"), **{"lr": LR, name: value}), f"{name} is {value}")


def test_trainer_trains_each_group_at_its_rate(tmp_path):
    """As without groups where the rates are one; where they are not, a table moves farther."""
    ids = token_ids(8, 6)
    rows = [{"input_ids": row, "labels": row} for row in ids]

    def train(kind: str, groups=None) -> HfRopeForMaskedLM:
        set_seed(0)
        model = tiny_model("t5", HfRopeForMaskedLM)
        options = arguments(tmp_path / kind, max_steps=2, per_device_train_batch_size=4)
        optimizer, optimizer_settings = Trainer.get_optimizer_cls_and_kwargs(options)
        if groups is not None:
            optimizer_settings["params"] = groups(model)
        Trainer(model, options, train_dataset=rows, optimizer_cls_and_kwargs=(optimizer, optimizer_settings)).train()
        return model

    plain = train("plain")
    equal = train("equal", lambda model: param_groups(model, LR, weight_decay=DECAY, position_lr=LR))
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(equal.get_parameter(name), parameter, rtol=0, atol=0, msg=name)
    faster = train("faster", lambda model: param_groups(model, LR, weight_decay=DECAY))
    start, table = tiny_model("t5", HfRopeForMaskedLM), "model.position.bias.weight"
    moved = [(model.get_parameter(table) - start.get_parameter(table)).abs().max() for model in (plain, faster)]
    assert moved[1] > 10 * moved[0]


def test_a_model_without_positions_of_hf_rope_is_refused():
    refused(lambda: param_groups(nn.Linear(2, 2), LR), "Linear has no position scheme of hf_rope", "as they are.")
