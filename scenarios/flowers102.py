"""Oxford Flowers, 102 kinds of flowers; a data set of the MTIL stream.

Nilsback and Zisserman 2008. Trained on its 1,020 "train" images; its 1,020 "val" images are unused,
as in ZSCL (Zheng et al. 2023, arXiv 2303.06628).
"""

from torchvision.datasets import Flowers102

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.torchvision_sets import list_images, official_split

NAME = "flowers102"
CLASSES = 102
TASKS = 10
IMAGES = "1,020 + 6,149"
DOWNLOAD = "345 MB"
LICENCE = "none stated"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
FOLDER = "flowers-102"
ARCHIVES = tuple(
    Archive(f"{Flowers102._download_url_prefix}{file}", f"md5:{md5}", into=FOLDER)
    for file, md5 in Flowers102._file_dict.values()
)
EXPECTED = tuple(f"{FOLDER}/{name}" for name in ("jpg", "imagelabels.mat", "setid.mat"))
NAMES = """
    pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger
    lily, moon orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king
    protea, spear thistle, yellow iris, globe-flower, purple coneflower, peruvian lily, balloon
    flower, giant white arum lily, fire lily, pincushion flower, fritillary, red ginger, grape
    hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke, sweet william,
    carnation, garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped
    cattleya, cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil,
    sword lily, poinsettia, bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common
    dandelion, petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff, gaura,
    geranium, orange dahlia, pink-yellow dahlia, cautleya spicata, japanese anemone, black-eyed
    susan, silverbush, californian poppy, osteospermum, spring crocus, bearded iris, windflower,
    tree poppy, gazania, azalea, water lily, rose, thorn apple, morning glory, passion flower,
    lotus, toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose, tree
    mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove,
    bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper,
    blackberry lily
"""


def load(options: Options, request: DataRequest) -> Source:
    """List the images of the splits "train" and "test"; torchvision checks the label files."""
    located = obtain(NAME, ARCHIVES, EXPECTED, request)
    _, train, test = official_split(Flowers102, located.folder, CLASSES)
    return Source(
        class_names=tuple(" ".join(name.split()) for name in NAMES.split(",")),
        templates=("a photo of a {}, a type of flower.",),
        train=train,
        test=test,
        origin=located.origin,
        spare=lambda: list_images(Flowers102, located.folder, CLASSES, split="val")[1],
    )
