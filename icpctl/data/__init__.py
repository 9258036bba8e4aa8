"""Image-classification data sets: found or downloaded, decoded once, split, and augmented.

Nothing here imports torch, torchvision or scikit-learn before it needs them; `icpctl.data.augment`, which is
torch code, is imported on its own.
"""

from icpctl.data.cache import ImageData, Split
from icpctl.data.loading import DATASETS, check_name, default_data_dir, load
from icpctl.data.splitting import split_train, stratified_part

__all__ = ["DATASETS", "ImageData", "Split", "check_name", "default_data_dir", "load", "split_train", "stratified_part"]
