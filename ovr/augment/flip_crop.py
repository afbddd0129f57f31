"""Random crops, flips, rotations and erasing of images, by kornia: whole batches, on the device that they are on.

B = batch, C = channels, H = height, W = width
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from ovr.errors import ConfigError

PADDINGS = ("constant", "reflect", "replicate")


class FlipCrop:
    """In this order: pad every side and crop to the old size at random, flip left to right, rotate, erase a rectangle.

    What is drawn depends on torch's seed alone. Values are neither scaled nor clipped. No module: nothing of it is a weight.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        pad: int,
        padding: str,
        flip_prob: float,
        rotate_deg: float,
        erase_prob: float,
        erase_area: Sequence[float],
    ) -> None:
        """Take the shape of one row, (H, W) or (C, H, W).

        Args:
            pad: pixels on every side before the crop, 0 for none.
            padding: "constant" (0), "reflect" or "replicate".
            flip_prob, erase_prob: of a row to be flipped, and to have a rectangle set to 0.
            rotate_deg: the largest angle, to either side; 0 for none. The corners become 0.
            erase_area: smallest and largest share of the image that is erased.

        Raises:
            ConfigError: a row that is no image, a setting out of range, or kornia missing.
        """
        if len(input_shape) not in (2, 3):
            raise ConfigError(
                f"augment=flip_crop needs rows of shape (H, W) or (C, H, W), got {tuple(input_shape)}; use augment=null"
            )
        height, width = input_shape[-2:]
        if not isinstance(pad, int) or isinstance(pad, bool) or not 0 <= pad < min(height, width):
            raise ConfigError(f"augment.pad must be a whole number of pixels from 0 to {min(height, width) - 1}, got {pad!r}")
        if padding not in PADDINGS:
            raise ConfigError(f"augment.padding is {padding!r}; expected one of {', '.join(PADDINGS)}")
        for name, value, most in (("flip_prob", flip_prob, 1), ("erase_prob", erase_prob, 1), ("rotate_deg", rotate_deg, 180)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
                raise ConfigError(f"augment.{name} must be a number from 0 to {most}, got {value!r}")
        if len(erase_area) != 2 or not 0 < erase_area[0] <= erase_area[1] <= 1:
            raise ConfigError(f"augment.erase_area must be two shares of the image, ascending, in (0, 1], got {list(erase_area)}")
        try:
            import kornia.augmentation as kornia
        except ImportError as error:
            raise ConfigError(f"augment=flip_crop is done by kornia: pip install 'ovr[augment]' ({error})") from None
        self._steps: list[Callable[[Tensor], Tensor]] = []
        if pad:
            self._steps.append(kornia.RandomCrop((height, width), padding=pad, padding_mode=padding, cropping_mode="slice", p=1.0))
        if flip_prob:
            self._steps.append(kornia.RandomHorizontalFlip(p=float(flip_prob)))
        if rotate_deg:
            self._steps.append(kornia.RandomRotation(float(rotate_deg), p=1.0))
        if erase_prob:
            self._steps.append(kornia.RandomErasing(scale=(float(erase_area[0]), float(erase_area[1])), p=float(erase_prob)))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the changed images, of the shape of `x`: (B, H, W) or (B, C, H, W)."""
        x_BCHW = x.unsqueeze(1) if x.ndim == 3 else x
        for step in self._steps:
            x_BCHW = step(x_BCHW)
        return x_BCHW.reshape(x.shape)
