"""What every registered loss keeps to, whichever it is."""

import pytest
import torch
from device_tools import OnMeta
from loss_tools import DATA, batch, network, signals, tensors_of

from architectures import list_models
from distillation.losses import Loss, find_loss, list_losses
from distillation.losses.base import loss_precision
from distillation.signals import Network

FREE = [key for key in list_losses() if not find_loss(key).prepared]  # those that need no files
LABELS = [3, 1, 4, 1, 5, 9, 2, 6]


def pair(key: str) -> tuple[Loss, Network, Network]:
    """A loss with its default options for two networks."""
    cls = find_loss(key)
    student = network("student")
    teacher = network("teacher", (16, 32, 64), num_features=64)
    return cls.build(student, teacher, DATA, **{field.name: field.default for field in cls.options()}), student, teacher


@pytest.mark.parametrize("key", list_losses())
def test_options_tell_what_they_are(key):
    for option in find_loss(key).described().values():
        assert option.help and not option.help.endswith(".")
        is_bounded = (option.at_least, option.above, option.choices) != (None, None, None)
        assert is_bounded or option.types in [(str,), (bool,)]  # any text: a place
        option.check(option.default)


@pytest.mark.parametrize("key", list_losses())
def test_what_is_published_is_a_term_an_option_or_the_cross_entropys_weight(key):
    cls = find_loss(key)
    known = {"ce", *cls.terms, *(field.name for field in cls.options())}
    for names, values in cls.published.items():
        assert set(values) <= known
        assert set(names) <= set(list_models())


@pytest.mark.parametrize("key", FREE)
def test_returns_its_terms_and_every_parameter_gets_a_gradient(key):
    torch.manual_seed(0)
    loss, student, teacher = pair(key)
    loss.on_epoch(30, 240)
    seen = signals(student, loss.needs.student, grad=True)
    taught = signals(teacher, loss.needs.teacher, grad=True)
    terms = loss(seen, taught, batch(torch.tensor(LABELS)))
    assert list(terms) == list(loss.terms)
    assert all(term.shape == () and term.dtype == torch.float32 and term > 0 for term in terms.values())
    sum(terms.values()).backward()
    for tensor in [*loss.parameters(), *tensors_of(seen)]:
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any()


@pytest.mark.parametrize("key", FREE)
def test_no_tensor_is_read_back_or_left_on_the_cpu(key):
    loss, student, teacher = pair(key)
    loss.to("meta")
    with torch.device("meta"):
        seen, taught = signals(student, loss.needs.student, grad=True), signals(teacher, loss.needs.teacher)
        mixed = {"other_labels": torch.zeros(8, dtype=torch.int64), "share": torch.rand(8)}
        given = batch(torch.zeros(8, dtype=torch.int64), **mixed)
    with OnMeta(), loss_precision(torch.device("meta")):
        loss.on_epoch(1, 240)
        terms = loss(seen, taught, given)
        total = sum(terms.values())
        total.backward()
    assert total.device.type == "meta"


@pytest.mark.parametrize("key", FREE)
def test_half_precision_stays_in_the_connectors(key):
    """Maps in bfloat16 are summed in float32; connectors run as the networks do."""
    torch.manual_seed(0)
    loss, student, teacher = pair(key)
    seen, taught = signals(student, loss.needs.student), signals(teacher, loss.needs.teacher)
    exact = loss(seen, taught, batch(torch.tensor(LABELS)))
    for found in (seen, taught):
        for maps in (found.maps, found.preact):
            maps.update({name: tensor.bfloat16() for name, tensor in maps.items()})
    types = []
    for module in loss.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: types.append(output.dtype))
    device = torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16), loss_precision(device):
        terms = loss(seen, taught, batch(torch.tensor(LABELS)))
    assert set(types) <= {torch.bfloat16}
    for name, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, exact[name], rtol=0.02, atol=0)


@pytest.mark.parametrize("key", ["kd", "dkd"])
def test_class_counts_that_differ_are_refused(key):
    cls = find_loss(key)
    options = {field.name: field.default for field in cls.options()}
    with pytest.raises(ValueError, match=rf"^{cls.method} compares logits.*resnet8 has 10 classes and wrn_40_2 100;"):
        cls.build(network("resnet8"), network("wrn_40_2", num_classes=100), DATA, **options)


@pytest.mark.parametrize("key", ["at", "reviewkd"])
def test_networks_with_other_numbers_of_stages_are_refused(key):
    cls = find_loss(key)
    options = {field.name: field.default for field in cls.options()}
    teacher = network("vgg13", (8, 16, 32, 64), ((16, 16), (8, 8), (4, 4), (2, 2)))
    message = rf"^{cls.method} .*: resnet8 has stage1, stage2, stage3 and vgg13 stage1, stage2, stage3, stage4;"
    with pytest.raises(ValueError, match=message):
        cls.build(network("resnet8"), teacher, DATA, **options)


@pytest.mark.parametrize("key", ["kd", "dkd"])
def test_mixed_images_weigh_both_labels(key):
    torch.manual_seed(0)
    loss, student, teacher = pair(key)
    loss.on_epoch(30, 240)
    seen, taught = signals(student, loss.needs.student), signals(teacher, loss.needs.teacher)
    labels, others, share = torch.tensor(LABELS), torch.tensor(LABELS[::-1]), torch.linspace(0.0, 1.0, 8)
    mixed = loss(seen, taught, batch(labels, other_labels=others, share=share))
    one, two = (loss.compare(seen.logits, taught.logits, given, loss.temperature) for given in (labels, others))
    for name, value in mixed.items():
        torch.testing.assert_close(value, (share * one[name] + (1 - share) * two[name]).mean())
