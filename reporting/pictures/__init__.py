"""Pictures of a trained experiment, each a PNG, a vector PDF, and a JSON file with its title, caption and command.

A picture is a class with a name and a method `draw`; `PICTURES` is the list that the entry and the report know.
"""

from reporting.pictures.base import FOLDER, Drawing, Picture
from reporting.pictures.confusion import Confusion
from reporting.pictures.embedding import Embedding
from reporting.pictures.subclasses import Subclasses
from reporting.pictures.templates import Templates
from reporting.pictures.usage import Usage

PICTURES: dict[str, type[Picture]] = {
    picture.name: picture for picture in (Subclasses, Embedding, Usage, Confusion, Templates)
}

__all__ = ["FOLDER", "PICTURES", "Drawing", "Picture"]
