"""What an option is: everything about it is said once, at a field of a dataclass.

    @dataclass(frozen=True, kw_only=True)
    class Protocol:
        epochs: int = option(240, "passes over the training images", at_least=1, jobs=("train",), bears="training")

From this follow the default, the check of a value and what an error says, the comment in `print_config`, the page
docs/options.md, which jobs refuse the option, which results may be compared, and what a preparing job is told.
Standard library only: options are printed and results are read without torch.
"""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from types import NoneType, UnionType
from typing import Any, Literal

EVERY_JOB = (  # on one experiment
    "train", "evaluate", "export", "probe", "layers", "kmeans", "LDA", "class_means", "predict", "pictures",
)  # fmt: skip
JOBS = (*EVERY_JOB, "report", "study")
LARGEST = 2**32 - 1  # of all numbers: more can only be a mistake, and torch takes no larger seed
NUMBER = (int, float)

# What an option bears on. "result": all that is computed, as one does that nobody has described. "training": a training
# alone; a trained network, and the images it is measured on, are the same with any value. "images": how images are
# prepared; None is what the data set or the training says. "input": what a network sees of them, likewise. "weights":
# where the network is. The others bear on no result of a training: "seed" sets apart runs that are averaged, "job" and
# "measured" say what is done and measured, "nothing" is where and how fast, up to rounding, and what is kept and shown
# of it.
Bears = Literal["result", "training", "images", "input", "weights", "seed", "job", "measured", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option, as `option(...)` describes it.

    Args:
        name: on the command line.
        types: of the values, one of them; for a list, of its elements.
        is_list: whether values are lists.
        optional: whether None is a value.
        others: see `option`.
    """

    name: str
    default: Any
    types: tuple[type, ...]
    is_list: bool = False
    optional: bool = False
    help: str = ""
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    choices: tuple[Any, ...] | None = None
    length: int | None = None
    elements: str = ""
    jobs: tuple[str, ...] = EVERY_JOB
    refused: bool = False
    bears: Bears = "result"
    inherited: bool = False
    of_loss: str | None = None

    def check_type(self, value: Any, called: str | None = None) -> None:
        """Refuse a value of another type.

        Args:
            called: the name that the user gave it, where that is another.

        Raises:
            ValueError: names the option, the type and the value.
        """
        name = called or self.name
        if value is None and not self.optional:
            raise ValueError(f"{name}=None is not possible: it needs a value of type {self._type_name()}")
        if value is not None and not (self._is_list(value) if self.is_list else self._is_one(value)):
            raise ValueError(f"{name}={value!r} must be {self._meant()}")

    def check(self, value: Any) -> None:
        """Refuse a value of another type, or out of bounds.

        Raises:
            ValueError: names the option, its value, and what it may be.
        """
        self.check_type(value)
        if value is None:
            return
        if self.is_list:
            if self.length not in (None, len(value)) or any(self._outside(element) is not None for element in value):
                raise ValueError(f"{self.name}={value!r} must be {self._meant()}")
        elif (bound := self._outside(value)) is not None:
            raise ValueError(f"{self.name}={value!r} must be {bound}")

    def _outside(self, value: Any) -> str | None:
        """What a value must be and is not; None where it is within all bounds."""
        if isinstance(value, NUMBER) and not -LARGEST <= value <= LARGEST:  # true of nan
            return f"a number of at most {LARGEST}"
        if isinstance(value, NUMBER):
            if self.at_least is not None and not value >= self.at_least:
                return f"at least {self.at_least}"
            if self.at_most is not None and not value <= self.at_most:
                return f"at most {self.at_most}"
            if self.above is not None and not value > self.above:
                return f"above {self.above}"
        if self.choices and value not in self.choices:
            return " or ".join(map(str, self.choices))
        return None

    def _is_list(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(map(self._is_one, value))

    def _is_one(self, value: Any) -> bool:
        return any(_is_a(kind, value) for kind in self.types)

    def _type_name(self) -> str:
        names = " or ".join(kind.__name__ for kind in self.types if kind is not object)
        return " of ".join(filter(None, ["list", names])) if self.is_list else names

    def _meant(self) -> str:
        what = f"a list of {self.elements}" if self.elements else f"of type {self._type_name()}"
        return what + (", or None" if self.optional else "")


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: Iterable[Any] | None = None,
    length: int | None = None,
    elements: str = "",
    jobs: tuple[str, ...] = EVERY_JOB,
    refused: bool = False,
    bears: Bears = "result",
    inherited: bool = False,
    of_loss: str | None = None,
) -> Any:
    """A field of a dataclass that is an option; its type, and whether None is a value, is what is written before it.

    Args:
        default: none where every experiment says it.
        help: what it means, one line without a full stop.
        at_least, at_most, above, choices: what a value may be, or each element of a list.
        length: of a list, where it has to be this.
        elements: of a list: what they are, and an example.
        jobs: those that read it.
        refused: by the other jobs, because it says what shall be done. How something is done, `cuda` for instance, may
            be said to any job, so that a command can be repeated with another job in it.
        bears: what it bears on.
        inherited: whether a run hands it on to the jobs that prepare it.
        of_loss: the other name of an option of a loss that has a published one: `ce.weight` of `cls_loss_coef`.

    Raises:
        ValueError: nothing says what it means.
    """
    if not help:
        raise ValueError("an option needs a help that says what it means")
    said = {
        "help": help, "at_least": at_least, "at_most": at_most, "above": above,
        "choices": None if choices is None else tuple(choices), "length": length, "elements": elements, "jobs": jobs,
        "refused": refused, "bears": bears, "inherited": inherited, "of_loss": of_loss,
    }  # fmt: skip
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=said)
    return dataclasses.field(default=default, metadata=said)


def options_of(group: type, prefix: str = "") -> dict[str, Option]:
    """The options that a dataclass describes, by name.

    Args:
        prefix: of their names, `dkd.`.
    """
    annotations = typing.get_type_hints(group)
    return {
        f"{prefix}{field.name}": Option(
            name=f"{prefix}{field.name}", default=_default(field), **_types(annotations[field.name]), **field.metadata
        )
        for field in dataclasses.fields(group)
    }


def like(name: str, default: Any) -> Option:
    """An option that nobody describes, of an experiment of the user's own: what is like its default.

    What has the default None may be anything.
    """
    if default is None:
        return Option(name=name, default=None, types=(object,), optional=True)
    if isinstance(default, list):
        return Option(name=name, default=default, types=(object,), is_list=True)
    return Option(name=name, default=default, types=(type(default),))


def filled(group: type, values: Mapping[str, Any]) -> Any:
    """A dataclass with those of `values` that are its fields."""
    return group(**{field.name: values[field.name] for field in dataclasses.fields(group) if field.name in values})


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _types(annotation: Any) -> dict[str, Any]:
    """What `Option` says of `int | str`, `list[int] | None` or `Any`."""
    if annotation is Any:
        return {"types": (object,), "optional": True}
    parts = typing.get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    kinds = tuple(part for part in parts if part is not NoneType)
    is_list = typing.get_origin(kinds[0]) is list
    return {
        "types": typing.get_args(kinds[0]) if is_list else kinds,
        "is_list": is_list,
        "optional": NoneType in parts,
    }


def _is_a(kind: type, value: Any) -> bool:
    """Whether a value has a type, as options have it: an int is a float, and True is no number."""
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, NUMBER if kind is float else kind)
