"""ResNet-20 -> ResNet-8 by words alone, of pictures without classes, `unlabelled=<folder of pictures>`.

What is learnt is measured on your own images, `data_dir=`, by `probe=True`, or trained further with their labels.
"""

from config.ImageFolder.RN20_RN8 import pair
from config.recipes import label_free

config = label_free(**pair)
