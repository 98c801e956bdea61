#!/usr/bin/env bash
# torchcodec 0.17.0: decode_image obeys the EXIF orientation of a JPEG; PIL, simplejpeg and torchvision's loaders do not.
#
# torchvision 0.29 deprecates its decoders in favour of torchcodec. On images without EXIF both have the same pixels, so
# that a swap passes every test on clean pictures. Of a picture from a phone torchcodec gives another shape: it turns it
# upright, where PIL.Image.open(...).convert("RGB"), which ImageFolder calls, leaves the sensor's orientation. A network
# trained by one and evaluated by the other sees those images turned; ImageNet's training split has such files.
#
# Seen: orientation 6 (a quarter turn), 40 x 24 pixels: PIL (24, 40, 3), torchcodec (3, 40, 24); without EXIF equal pixels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 torchcodec==0.17.0 pillow==12.3.0 simplejpeg==1.9.0 numpy==2.4.6
cd "$folder"
env/bin/python - <<'PY' | tee seen
import io

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchcodec.decoders import decode_image

grey = np.linspace(0, 255, 40 * 24).reshape(24, 40).astype("uint8")
picture = Image.fromarray(grey).convert("RGB")
exif = Image.Exif()
exif[0x0112] = 6


def jpeg(**more):
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=90, **more)
    return data.getvalue()


for name, data in (("no EXIF", jpeg()), ("orientation 6", jpeg(exif=exif))):
    pil = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    codec = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()
    simple = simplejpeg.decode_jpeg(data)
    same = pil.shape == codec.shape and bool((pil == codec).all())
    print(f"{name}: PIL {pil.shape}, simplejpeg {simple.shape}, torchcodec {codec.shape}, equal: {same}")
PY
grep -q "no EXIF: PIL (24, 40, 3), simplejpeg (24, 40, 3), torchcodec (24, 40, 3), equal: True" seen
grep -q "orientation 6: PIL (24, 40, 3), simplejpeg (24, 40, 3), torchcodec (40, 24, 3), equal: False" seen
