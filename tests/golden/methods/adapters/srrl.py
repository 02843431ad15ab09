"""SRRL: `SRRL` of SimKD's repository, whose connector begins with a 1x1 convolution of the pooled vector as a map."""

from distillation.signals import Head, Signals
from tests.distillation.losses.loss_tools import network
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, no_labels, run, weighted


def compare(golden: Golden) -> None:
    student, teacher = golden.variable("input/student_pooled"), golden["input/teacher_pooled"]
    head = Head(golden["param/teacher_classifier.weight"], golden["param/teacher_classifier.bias"])
    nets = [network(num_features=pooled.shape[1]) for pooled in (student, teacher)]
    loss = build("srrl", *nets, num_classes=len(head.weight))
    linear, norm, _ = loss.connector
    weight = golden.variable("param/transfer.0.weight")
    del linear.weight
    linear.weight = weight.flatten(1)  # its gradient has the convolution's shape
    variables = {"student_pooled": student, "transfer.0.weight": weight} | golden.load(norm, "transfer.1.")
    taught = Signals(pooled=teacher, logits=golden["input/teacher_logits"], head=head)
    terms = run(loss, Signals(pooled=student), taught, no_labels(len(student)))
    golden.compare_state(norm, "transfer.1.")
    for name, term in terms.items():
        golden.compare_loss(name, term, variables)
    golden.compare_loss("srrl", weighted(terms, feature=1.0, logits=1.0), variables)
    golden.compare("out/logits_through_teacher", head(loss.connector(student)))
