"""Emoji as folders of pictures, 32 x 32 pixels: emoji/train/CLASS/*.png and emoji/test/CLASS/*.png.

Reads the npm packages emoji-datasource-google and emoji-datasource-twitter, unpacked into google and twitter.
Every sixth emoji is tested, in both drawings: no emoji is in both parts.
"""

import json
import random
from pathlib import Path

from PIL import Image

vendors = ("google", "twitter")
emoji = json.loads(Path("google/package/emoji.json").read_text())
emoji = [one for one in emoji if one["category"] != "Component"]
random.Random(0).shuffle(emoji)
for place, one in enumerate(emoji):
    part = "test" if place % 6 == 0 else "train"
    folder = Path("emoji", part, one["category"].split()[0].lower())
    folder.mkdir(parents=True, exist_ok=True)
    for vendor in vendors:
        file = Path(vendor, "package/img", vendor, "64", one["image"])
        if file.is_file():
            Image.open(file).convert("RGBA").resize((32, 32)).save(folder / f"{vendor}-{one['image']}")
