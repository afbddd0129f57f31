from ovr.torchvision_ops import declare_missing_ops

declare_missing_ops()  # before the first import of lightning
