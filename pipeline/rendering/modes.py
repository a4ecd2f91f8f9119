"""From a decoded image to the content of a view, in one of three arithmetics of the same recipe.

exact      torchvision's arithmetic on faster ground: antialiased resize, colour steps by OpenCV
fast       linear resize, all colour steps as one 3x4 matrix: hue turns in YIQ, nothing clips between
reference  torchvision v2, for tests and comparisons; a tenth of the speed

Steps work in place where they can: at these sizes memory is what they wait for.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.rendering.augment import NO_COLOUR_CHANGE, Colour, Recipe
from pipeline.rendering.decode import Pixels
from pipeline.rendering.geometry import GridCrop

BLUR_KERNEL = 9
BLUR_REACH = 3.53
"""In sigmas: tap weights beyond are less than 1/512 of the middle one, which 8 bits round to nothing."""
LUMA = np.array([0.2989, 0.587, 0.114])
RGB_TO_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
CUT = -0.5 + 2.0**-10
"""Added to a value, it makes OpenCV's rounding torchvision's cast, which cuts."""
CUT_LUMA = np.tile(np.append(LUMA, CUT), (3, 1))


def render(image: Pixels, crop: GridCrop, recipe: Recipe, mode: str, out: Pixels) -> None:
    """Fills `out`, (height, width, 3) of the crop in contiguous rows; without erasures."""
    MODES[mode](image[crop.y1 : crop.y2, crop.x1 : crop.x2], recipe, out)


def colour_matrix(colour: Colour, mean_rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 4): brightness, contrast about the mean grey, saturation, hue, grey, in this order."""
    gain = colour.brightness * colour.contrast
    offset = (1 - colour.contrast) * colour.brightness * float(LUMA @ mean_rgb)
    to_grey = np.tile(LUMA, (3, 1))
    mixing = colour.saturation * np.eye(3) + (1 - colour.saturation) * to_grey
    if colour.hue:
        cos, sin = np.cos(2 * np.pi * colour.hue), np.sin(2 * np.pi * colour.hue)
        turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])  # from red to yellow, as HSV
        mixing = np.linalg.inv(RGB_TO_YIQ) @ turn @ RGB_TO_YIQ @ mixing
    if colour.grey:
        mixing = to_grey @ mixing
    return np.hstack([gain * mixing, offset * mixing.sum(1, keepdims=True)])


def mean_rgb(pixels: Pixels) -> NDArray[np.float64]:
    """(3,)"""
    return np.array(cv2.sumElems(pixels)[:3]) / max(1, pixels.shape[0] * pixels.shape[1])


def blur_taps(sigma: float) -> int:
    """Of the kernel of `BLUR_KERNEL` taps, as many as are not nothing."""
    return min(BLUR_KERNEL, 2 * int(BLUR_REACH * sigma) + 1)


def _render_exact(window: Pixels, recipe: Recipe, out: Pixels) -> None:
    content = _resize_antialiased(window, out.shape[:2])
    if recipe.flip:
        cv2.flip(content, 1, dst=content)
    _jitter(content, recipe.colour)
    _blur(content, recipe.blur_sigma, out)


def _jitter(content: Pixels, colour: Colour) -> None:
    if colour.brightness != 1:
        cv2.addWeighted(content, colour.brightness, content, 0, CUT, dst=content)
    if colour.contrast != 1:
        mean = cv2.mean(cv2.cvtColor(content, cv2.COLOR_RGB2GRAY))[0] - 0.5  # as if it were cut
        offset = (1 - colour.contrast) * mean + CUT
        cv2.addWeighted(content, colour.contrast, content, 0, offset, dst=content)
    if colour.saturation != 1:
        grey, keep = cv2.transform(content, CUT_LUMA), colour.saturation
        cv2.addWeighted(content, keep, grey, 1 - keep, CUT, dst=content)
    if colour.hue:
        hsv = cv2.cvtColor(content, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(colour.hue * 256) % 256)
        cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=content)
    if colour.grey:
        cv2.transform(content, CUT_LUMA, dst=content)


def _render_fast(window: Pixels, recipe: Recipe, out: Pixels) -> None:
    height, width = out.shape[:2]
    content = np.empty_like(out) if blur_taps(recipe.blur_sigma) > 1 else out
    cv2.resize(window, (width, height), dst=content, interpolation=cv2.INTER_LINEAR)
    if recipe.flip:
        cv2.flip(content, 1, dst=content)
    if recipe.colour != NO_COLOUR_CHANGE:
        cv2.transform(content, colour_matrix(recipe.colour, mean_rgb(content)), dst=content)
    if content is not out:
        _blur(content, recipe.blur_sigma, out)


def _render_reference(window: Pixels, recipe: Recipe, out: Pixels) -> None:
    from torchvision.transforms.v2 import functional as tv  # seconds, in every worker process

    image = torch.from_numpy(np.ascontiguousarray(window)).permute(2, 0, 1)
    image = tv.resize(image, list(out.shape[:2]), antialias=True)
    if recipe.flip:
        image = tv.horizontal_flip(image)
    colour = recipe.colour
    image = tv.adjust_brightness(image, colour.brightness)
    image = tv.adjust_contrast(image, colour.contrast)
    image = tv.adjust_saturation(image, colour.saturation)
    image = tv.adjust_hue(image, colour.hue)
    if colour.grey:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    if recipe.blur_sigma:
        taps = min(BLUR_KERNEL, 2 * min(out.shape[:2]) - 1)  # its border is one reflection
        image = tv.gaussian_blur(image, [taps] * 2, [recipe.blur_sigma] * 2)
    np.copyto(out, image.permute(1, 2, 0).numpy())


MODES: dict[str, Callable[[Pixels, Recipe, Pixels], None]] = {
    "exact": _render_exact,
    "fast": _render_fast,
    "reference": _render_reference,
}


def _resize_antialiased(window: Pixels, size: tuple[int, ...]) -> Pixels:
    """Torchvision's antialiased bilinear resize, channels-last: the layout of its fastest kernel."""
    image = torch.from_numpy(np.ascontiguousarray(window))[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _blur(content: Pixels, sigma: float, out: Pixels) -> None:
    taps = blur_taps(sigma)
    if taps == 1:
        np.copyto(out, content)
    else:
        cv2.GaussianBlur(content, (taps, taps), sigma, dst=out)
