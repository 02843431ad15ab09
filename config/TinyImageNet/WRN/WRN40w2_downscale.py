"""WRN-40-2 with maps pooled 2x2: supervision for the students of half its resolution."""

from config.recipes import classification

config = classification(dataset="TinyImageNet", network="wrn_40_2", downscale=2, trained_as="TinyImageNet.WRN.WRN40w2")
