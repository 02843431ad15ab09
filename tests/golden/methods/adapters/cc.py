"""CC: `Correlation` and `Embed` of RepDistiller, which trains both embeddings."""

from distillation.signals import Signals
from tests.distillation.losses.loss_tools import network
from tests.golden.methods.core import Golden
from tests.golden.methods.tools import build, no_labels, run

NAMES = {"embed_s": "embedding", "embed_t": "teacher_embedding"}  # what the reference calls them


def compare(golden: Golden) -> None:
    golden.leave_out("const/feat_dim_published", "the embeddings here have as many dimensions as those of the file")
    student, teacher = golden.variable("input/student_pooled"), golden["input/teacher_pooled"]
    nets = (network(num_features=pooled.shape[1]) for pooled in (student, teacher))
    loss = build("cc", *nets, dimensions=len(golden["param/embed_s.linear.bias"]))
    variables = {"student_pooled": student} | golden.load(loss, "", renamed)
    products = run(loss, Signals(pooled=student), Signals(pooled=teacher), no_labels(len(student)))["cc"]
    golden.compare_loss("cc", products, variables)
    golden.compare_loss("weighted", golden.number("const/weight") * products, variables)


def renamed(name: str) -> str:
    """Our name of a parameter of the reference."""
    embedding, _, rest = name.split(".")
    return f"{NAMES[embedding]}.0.{rest}"
