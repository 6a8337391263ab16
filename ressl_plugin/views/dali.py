"""The graph that DALI runs: one decoding of each image, then a crop, a resize and a flip a view.

All that is random is an input of the graph (see `draw`), so the same inputs give the same crops.
"""

import numpy as np

ATTEMPTS = 10  # as torchvision's RandomResizedCrop
NEVER = 1e6  # a side that fits in no image: every attempt fails, the fallback is taken


def draw(crops, count, rng):
    """What is random in the crops of a batch of `count` images, V = len(crops):

    sides (N, V, 10, 2), float32: height and width of each attempt, as fractions of the square root
    of the image's area; place (N, V, 2), float32 in [0, 1): top and left, as fractions of the room
    that there is; flips (N, V), int32. The law is that of torchvision's RandomResizedCrop.
    """
    shape = (count, len(crops), ATTEMPTS)
    low, high = np.array([view.area for view in crops], np.float64).T[:, :, None]
    area = rng.uniform(low, high, shape)
    low, high = np.log([view.ratio for view in crops]).T[:, :, None]
    ratio = np.exp(rng.uniform(low, high, shape))
    sides = np.sqrt(np.stack([area / ratio, area * ratio], -1))
    sides[:, [not view.crop_enabled for view in crops]] = NEVER
    place = rng.random((count, len(crops), 2), dtype=np.float32)
    flips = rng.random((count, len(crops))) < [view.flip_prob for view in crops]
    return sides.astype(np.float32), place, flips.astype(np.int32)


def windows(shape, sides, place, crops):
    """DALI graph: top-left corners and sizes, (V, 2) int32 each, of the crops of an image.

    The first attempt that fits is taken. When none does: the largest centred rectangle within the
    ratio's range. A view without a crop never fits, and its range is (1, 1): the centred square,
    which is what resizing the shorter side and cropping the centre gives.
    """
    from nvidia.dali import fn, math, types

    def real(node):
        return fn.cast(node, dtype=types.FLOAT)

    ratio = np.array([view.ratio if view.crop_enabled else (1, 1) for view in crops], np.float32)
    low, high = types.Constant(ratio[:, 0].copy()), types.Constant(ratio[:, 1].copy())
    height, width = shape[0], shape[1]
    sides = math.floor(sides * math.sqrt(height * width) + 0.5)  # (V, 10, 2)
    fits = real(sides[:, :, 0] <= height) * real(sides[:, :, 1] <= width)
    fits *= real(sides[:, :, 0] > 0) * real(sides[:, :, 1] > 0)
    rank = fits * types.Constant(np.arange(ATTEMPTS, 0, -1).astype(np.float32))
    best = fn.reductions.max(rank, axes=[1], keep_dims=True)
    first = real(rank == best) * fits
    hit = real(best > 0)  # (V, 1)
    drawn = [fn.reductions.sum(sides[:, :, axis] * first, axes=[1]) for axis in (0, 1)]
    largest = [
        math.min(height, math.floor(width / low + 0.5)),
        math.min(width, math.floor(height * high + 0.5)),
    ]
    size = fn.stack(*drawn, axis=1) + (1 - hit) * fn.stack(*largest, axis=1)
    room = shape - size
    start = hit * math.floor(place * (room + 1)) + (1 - hit) * math.floor(room / 2)
    return fn.cast(start, dtype=types.INT32), fn.cast(size, dtype=types.INT32)


def pipeline(
    source, crops, device, image_size=None, interpolation="bicubic", exif=False, report=False,
    **kwargs,
):  # fmt: skip
    """A DALI pipeline whose outputs are the crops, uint8 (N, 3, S, S), from one decoding of each
    image, fitted to image_size first where that is given; with `report`, corners, sizes (N, V, 2)
    and flips (N, V) follow."""
    from nvidia.dali import fn, math, pipeline_def, types

    filters = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}

    @pipeline_def
    def graph():
        path, sides, place, flips = fn.external_source(source=source, num_outputs=4, batch=True)
        encoded = fn.io.file.read(path)
        # Fancy upsampling, EXIF rotation if asked for: what Pillow does, to the bit on the CPU.
        images = fn.decoders.image(
            encoded,
            device="mixed" if device == "gpu" else "cpu",
            output_type=types.RGB,
            jpeg_fancy_upsampling=True,
            adjust_orientation=exif,
        )
        shape = fn.peek_image_shape(encoded, dtype=types.FLOAT, adjust_orientation=exif)[:2]
        if image_size:  # as data.images.fit: the shorter side, then the centre
            shape = math.floor(shape * (image_size / math.min(shape[0], shape[1])) + 0.5)
            images = fn.resize(images, size=shape, interp_type=filters[interpolation])
            corner = fn.cast(math.floor((shape - image_size) / 2), dtype=types.INT32)
            images = fn.slice(images, start=corner, shape=[image_size] * 2, axes=[0, 1])
            shape = types.Constant(np.array([image_size] * 2, np.float32))
        starts, sizes = windows(shape, sides, place, crops)
        outputs = []
        for i, view in enumerate(crops):
            # Cut, then resize: a resize of a region would look beyond the region's border.
            crop = fn.slice(images, start=starts[i], shape=sizes[i], axes=[0, 1])
            crop = fn.resize(
                crop, size=[view.crop_size] * 2, interp_type=filters[view.interpolation]
            )
            outputs.append(
                fn.crop_mirror_normalize(
                    crop, mirror=flips[i], dtype=types.UINT8, output_layout="CHW", mean=[0], std=[1]
                )
            )
        return (*outputs, starts, sizes, flips) if report else tuple(outputs)

    return graph(**kwargs)
