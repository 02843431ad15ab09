"""What every registered loss keeps to, whichever it is."""

import pytest
import torch
from device_tools import OnMeta
from loss_tools import DATA, FILES, batch, changed, network, outlined, signals, tensors_of

from architectures import list_models
from distillation.losses import LogitLoss, Loss, find_loss, list_losses
from distillation.losses.base import KINDS, ORDER, loss_precision
from distillation.signals import Network

FREE = [key for key in list_losses() if set(find_loss(key).prepared) <= set(FILES)]  # those whose files are made up
LABELS = [3, 1, 4, 1, 5, 9, 2, 6]


def default(cls: type[Loss], teacher: Network) -> dict[str, object]:
    """Default options, and what of files it is built from."""
    files = {name: FILES[name](teacher) for name in cls.prepared}
    return {field.name: field.default for field in cls.options()} | files


def pair(key: str) -> tuple[Loss, Network, Network]:
    """A loss with its default options for two networks."""
    cls = find_loss(key)
    student = network("student")
    teacher = network("teacher", (8, 16, 32) if key == "fsp" else (16, 32, 64), num_features=64)
    return cls.build(student, teacher, DATA, **default(cls, teacher)), student, teacher


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


@pytest.mark.parametrize("key", [key for key in list_losses() if find_loss(key).method])
def test_says_where_it_is_from_and_what_it_compares(key):
    cls = find_loss(key)
    assert cls.paper or key not in ORDER
    assert cls.kind in KINDS
    assert (cls.kind == "teacher-free") == (not cls.needs_teacher)
    assert (cls.kind == "logits") == issubclass(cls, LogitLoss)
    if key in FREE and cls.kind != "logits":
        assert cls.kind == "relations" or not pair(key)[0].needs.whole_batch


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
    torch.manual_seed(1)  # of a dropout
    exact = loss(seen, taught, batch(torch.tensor(LABELS)))
    for found in (seen, taught):
        for maps in (found.maps, found.preact):
            maps.update({name: tensor.bfloat16() for name, tensor in maps.items()})
    types = []
    for module in loss.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: types.append(output.dtype))
    torch.manual_seed(1)
    device = torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16), loss_precision(device):
        terms = loss(seen, taught, batch(torch.tensor(LABELS)))
    assert set(types) <= {torch.bfloat16}
    for name, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, exact[name], rtol=0.02, atol=0)


ON_LOGITS = [key for key in FREE if issubclass(find_loss(key), LogitLoss)]


@pytest.mark.parametrize("key", [*ON_LOGITS, "cat-kd", "kdpp"])
def test_class_counts_that_differ_are_refused(key):
    cls = find_loss(key)
    teacher = network("wrn_40_2", num_classes=100)
    with pytest.raises(ValueError, match=rf"^{cls.method} compares logits.*resnet8 has 10 classes and wrn_40_2 100;"):
        cls.build(network("resnet8"), teacher, DATA, **default(cls, teacher))


@pytest.mark.parametrize("key", ["at", "vid", "nst", "reviewkd", "ab", "fsp"])
def test_networks_with_other_numbers_of_stages_are_refused(key):
    cls = find_loss(key)
    teacher = network("vgg13", (8, 16, 32, 64), ((16, 16), (8, 8), (4, 4), (2, 2)))
    message = rf"^{cls.method} .*: resnet8 has stage1, stage2, stage3 and vgg13 stage1, stage2, stage3, stage4;"
    with pytest.raises(ValueError, match=message):
        cls.build(network("resnet8"), teacher, DATA, **default(cls, teacher))


@pytest.mark.parametrize("key", ["kd", "dkd", "nkd", "ttm", "wttm"])
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


def reads_features(key: str) -> bool:
    wanted = pair(key)[0].needs.student
    return bool(wanted.maps or wanted.preact or wanted.pooled)


@pytest.mark.parametrize("key", list(filter(reads_features, FREE)))
def test_networks_that_lack_what_it_reads_are_refused(key):
    """Those without stages, and those whose logits come from no Linear; one line names the method and the network."""
    cls = find_loss(key)
    loss, student, teacher = pair(key)
    wanted = loss.needs.student
    lacks = {}
    if any("stage" in place for place in (*wanted.maps, *wanted.preact)):
        lacks["bare"] = {"stages": (), "places": {}, "befores": {}}
    if wanted.pooled or wanted.head:
        lacks["headless"] = {"head": None}
    for name, fields in lacks.items():
        for networks in (
            (outlined(student, network=name, **fields), teacher),
            (student, outlined(teacher, network=name, **fields)),
        ):
            with pytest.raises(ValueError, match=rf"\b{name} has no") as caught:
                cls.build(*networks, DATA, **default(cls, teacher))
            assert "\n" not in str(caught.value)
    assert lacks


@pytest.mark.parametrize("key", FREE)
def test_says_whether_it_needs_the_whole_batch(key):
    """It does unless the terms of two halves have those of all for a mean."""
    torch.manual_seed(0)
    loss, student, teacher = pair(key)
    loss.eval()  # without the statistics of a batch, which are a matter of connectors
    loss.on_epoch(30, 240)
    found = signals(student, loss.needs.student), signals(teacher, loss.needs.teacher)
    labels = torch.tensor(LABELS)

    def terms(rows: slice) -> dict[str, torch.Tensor]:
        return loss(*(changed(each, lambda x: x[rows]) for each in found), batch(labels[rows]))

    whole, halves = terms(slice(8)), (terms(slice(4)), terms(slice(4, 8)))
    is_mean = [torch.allclose(whole[name], (halves[0][name] + halves[1][name]) / 2, rtol=1e-4) for name in whole]
    assert loss.needs.whole_batch == (not all(is_mean))


@pytest.mark.parametrize("key", [key for key in FREE if pair(key)[0].needs.whole_batch])
def test_a_batch_of_one_has_nothing_to_compare(key):
    loss, student, teacher = pair(key)
    loss.on_epoch(30, 240)
    seen = changed(signals(student, loss.needs.student), lambda x: x[:1])
    taught = changed(signals(teacher, loss.needs.teacher), lambda x: x[:1])
    terms = loss(seen, taught, batch(torch.tensor(LABELS[:1])))
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    for tensor in tensors_of(seen):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


SINGULAR = {
    "all_zero": torch.zeros_like,
    "one_is_zero": lambda x: torch.cat([torch.zeros_like(x[:1]), x[1:]]),
    "two_are_equal": lambda x: torch.cat([x[1:2], x[1:]]),
    "all_are_equal": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("case", SINGULAR)
@pytest.mark.parametrize("key", FREE)
def test_gradients_are_moderate_where_a_norm_or_a_distance_is_zero(key, case):
    """In the student, whose teacher is not so; of the order of those elsewhere."""
    torch.manual_seed(0)
    loss, student, teacher = pair(key)
    loss.eval()  # a BatchNorm has steep gradients where all are equal
    loss.on_epoch(30, 240)
    usual = signals(student, loss.needs.student, grad=True)
    singular = changed(usual, SINGULAR[case])
    taught = signals(teacher, loss.needs.teacher)
    largest = []
    for seen in (usual, singular):
        terms = loss(seen, taught, batch(torch.tensor(LABELS)))
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        largest.append(max(tensor.grad.abs().max() for tensor in tensors_of(seen)))
    assert largest[1] <= 1e4 * largest[0]
