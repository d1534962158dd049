"""Synthetic people for person re-identification, in the layouts of published data sets.

People share a palette and differ by pattern, print, bag and shape; some of it shows from one side
only; cameras turn colours, look from their own direction and have several backdrops. So identities
must be learnt, and crossing cameras must be learnt too. From the command line:

    python -m data_prep.synthetic --out DIR --seed 0

writes bounding_box_train, query, bounding_box_test and generator.json, as Market-1501 has them;
`--layout mars` (or another of `layouts.LAYOUTS`) writes video, visible and infrared pictures, ...
"""

from data_prep.synthetic.cameras import Camera, draw_cameras
from data_prep.synthetic.folder import (
    SAMPLE_SHA256,
    VERSION,
    SyntheticConfig,
    folder_names,
    sample_hash,
    write_folder,
    write_names,
)
from data_prep.synthetic.infrared import infrared_camera
from data_prep.synthetic.layouts import LAYOUTS, LAYOUTS_VERSION, layout_of, write_layout
from data_prep.synthetic.names import ParsedName, parse_name
from data_prep.synthetic.people import (
    ATTRIBUTES,
    DOMAINS,
    VOCABULARY,
    Person,
    attributes,
    caption,
    code_distance,
    draw_people,
)
from data_prep.synthetic.render import Plan, encode, make_plan, portrait, render_images

__all__ = [
    "ATTRIBUTES",
    "DOMAINS",
    "LAYOUTS",
    "LAYOUTS_VERSION",
    "SAMPLE_SHA256",
    "VERSION",
    "VOCABULARY",
    "Camera",
    "ParsedName",
    "Person",
    "Plan",
    "SyntheticConfig",
    "attributes",
    "caption",
    "code_distance",
    "draw_cameras",
    "draw_people",
    "encode",
    "folder_names",
    "infrared_camera",
    "layout_of",
    "make_plan",
    "parse_name",
    "portrait",
    "render_images",
    "sample_hash",
    "write_folder",
    "write_layout",
    "write_names",
]
