"""Cell membranes in electron microscopy: the 30 slices of the ISBI 2012 challenge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.datasets import Dataset, RemoteFile, Split, fetch

SIDE = 512
CLASSES = ("membrane", "cell")

# Neighbouring slices look alike, so a split is made of blocks, and no slice is in two. From slice
# 15 on the pictures are grainier, so each split has a block of either half.
TRAIN = (*range(10), *range(15, 25))
VALIDATION = (10, 11, 25, 26)
TEST = (12, 13, 14, 27, 28, 29)

_MIRROR = "https://raw.githubusercontent.com/zhixuhao/unet/master/data/membrane/train/"


def membranes() -> Dataset:
    """30 slices 512x512 of a fly larva's nerve cord, 4x4x50 nm a pixel, and their membranes.

    Whole slices: 20 to train, 4 to validate, 6 to test. `image` float32 [rows, 1, 512, 512] in
    [0, 1], `mask` int64 [rows, 512, 512]: 0 on a membrane, 1 in a cell. The challenge's own test
    labels were never published.
    """
    splits = {
        name: Split({"image": _slices("image", rows)}, {"mask": _masks(rows)})
        for name, rows in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST))
    }
    return Dataset(
        name="membranes",
        source="ISBI 2012 challenge on segmentation of neuronal structures in EM stacks, "
        "training volume, digests of the decoded pixels checked",
        licence="free for research (Cardona et al. 2010, ISBI 2012 EM challenge)",
        classes=CLASSES,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
    )


def _slices(part: str, rows: Sequence[int]) -> np.ndarray:
    """Float32 [rows, 1, 512, 512] in [0, 1]."""
    pixels = b"".join(fetch(_file(part, row)) for row in rows)
    return np.frombuffer(pixels, np.uint8).reshape(-1, 1, SIDE, SIDE).astype(np.float32) / 255


def _masks(rows: Sequence[int]) -> np.ndarray:
    """Int64 [rows, 512, 512]: 1 where the label is white."""
    return (_slices("label", rows)[:, 0] > 0.5).astype(np.int64)


def _file(part: str, row: int) -> RemoteFile:
    name = f"{part}/{row}.png"
    return RemoteFile(f"isbi_membrane/{name}", _MIRROR + name, _DIGESTS[part][row])


# Of the pixels of each slice, in their order.
_DIGESTS = {
    "image": [
        "e235f967447919aab272b85e9ab400b726ba7fdd91cca9f649224c7023d4149d",
        "d555e1494bd1dd95c08363997c4f4f7181a0e3ce749dcc53d167ed94cae60679",
        "a7df6a4d2eb47d18bfb8a42a79b1c093d6f51903016f0db5e5dc648133b1a12f",
        "c2ab6a6142011f90e593a4f9ccc3d22e8ba258a4c3d0e05d90320f8afc92e3de",
        "a14e585a72c74f03c59de80d75f989f73405e09fa0ed728354e62817fef351f5",
        "bda1e6c8b13abe294cd6aaa7d44f27d7de17cb1fc60deeeb6f30978209d89f74",
        "348c5f717ce8fd07c3448cfb9bf1d0ab2e94822112d6b7adb71b7390232c467e",
        "6cc44fac7b7c8abf92f3ed1e5a8318667fea3c1509976eb4c8124d60b6e8c1b6",
        "60a539e9ae5441436a89496fec924c0e8423c70de849f705bb080d61f2d44449",
        "2813dcf790b5abe136a5dd1b00c1e1391ec93e725143ca9757a860c5dceacc28",
        "5f488f7e11cad210f32f6e81496aa0d23b1cefac43d26cd6c6def477e083cc9d",
        "d8296c04f02230b9f0281a0758fa17e96259ac15a0cbf7a72e37ed7e9cfe42d6",
        "45150651d46b8d903aa74b11ae7b857cf54079c8125110f00412575a701f3312",
        "3f6d7332c8a4d4180999109ddbf9ef7d71f9e930bc5d27febbe9219133172cac",
        "64c72b75e35eaa267ca87a3f28bce0e90f21b7ecfab48cac42cf05b25204cd46",
        "697e6542ab58fd52f07f89e83792d1a1fe70ffb9a9a63cdbd75bd9b093106ffb",
        "a9cc355ddeb20144e03ceef6db4488e1305f4495a9ce98f1d097354ffa0408c4",
        "2ef981d0324442d944647344de8798fad37aef1d7a9661e51473debf2c0284e3",
        "ba8939696a7e31e1aad96229ed39094cebacdd3150480244d713257645cbc220",
        "02c701220f4599e36ae91498a65ea2704cbebe13d418b9bbeff43e7ba3f6bead",
        "9b6b0273e27f3f8e34b62f6d0e3f167c2bbbd4a922577af838c3429a1e2e1c9b",
        "4501aed07c1ba965b06e6de71e853b157c4d0db34a1f926c0bc3255e469814fd",
        "6a9a6d35c413030658dc2d43525be43b54ac330111f2e5cb62de4b51f7415b7f",
        "bdcb92f8f6417e942a2b6f1a4d6cc4d3f3ea07658d21da75c45adee4a473321a",
        "67544e02f4f69c40eb0987988a81e5218d3765a3045e80b28f0bc499d3cb650f",
        "ef3513913f07049ae6f927072153f57802ca899a395acf96388b9c32e32709a9",
        "78457f8c8c220af0710e08eca3da80d7e7035db5d4c5f08a81e82921b45d6fc3",
        "0da76c31bf7216a12c6c3136e1d107c920123ea5541ce6881b73804b83634753",
        "e4fc52d63bf1f11ecc6ef21a0ce1f18fc92144b84024d1f5e00634303154f44b",
        "0ca1dce6222eae36956b6dc27a3fa3217fd703d22ea37bdcca31357a284e17c1",
    ],
    "label": [
        "8de677a890c9bfc08f5bee70f8b0bcb4cbd7392bcd0aaa06443322eca2a3aa60",
        "877f0209e3842b0bf751ea14c8d3cdf3d21c0b99396193b340137ed4da8b2686",
        "bc751dd39651b82424fc3fb1fcf0b36db28046a4a9be72173884c6ec206ff412",
        "51f76825393bc0ca6255ba9a9536315a8919bd6ff04e29e3dd1023feb218b174",
        "8b478b5e19677c8f7e1abb40231b8dd34acd1823bf59d5427d651c3deafb4852",
        "db188c1d67e48c0c5de1e51c994ed0ac3def81a37a2b7b03db023f0f2ac65c8a",
        "cf1286315b0be9b33721280deebdff5e4c90bbf31fda7f0c7bdc228a641623c3",
        "4042734499c8319f0398cdb8b45b7e1d831409cfe0aef34cc340dbb30258844a",
        "f69c3a7908ad53f8ab832be8f120554251cba92cd6000d5ca61b5106bab3fc2d",
        "9ad99838377cd812a6a609934ab164bef2438c2020b5f4d4b203a159b0621435",
        "7121c3b41ed6dc08385d37f55d436a00831f62e4ae1a5617d7f905ae22bef3dc",
        "96db15851cc345758c2ca5ab687058b5554e34f98d38000063dbec71027d7f7a",
        "b10f1ed85f8e6edf37580e11c39125322b9f4f90909465766bc29c842d235117",
        "3819e3064010a70f07eb867baa299589849c33b7b944bff1621ad010ffe7815c",
        "8d0a3fd02f4989b19e74c408851d0f7b7aaed71214c5b6bb4d8162872037ad0e",
        "2e9e28c2282eb31bf871da5841d12b0e1206e7e2470ae41c22814af4fe7d7d01",
        "1c3f220c260a05b6256fb815d6042577813e9f825596a29b20968c2ce6962582",
        "964752eb393e06c6a91d42f9ccce6d3daf4773733874f5dca5b2a6c4fe3be8c3",
        "be888bac7a89d6a8a014bb591ad786ba53e93d411f02b09a16a130a6a9203744",
        "3b5e7f90540e480959970a567c2256d927918dadad9d362d474408bc423c0f8e",
        "92bebd22d1a16d764a4bfb1d40ed121b00d772794b56e9db50be3ad4c29fad54",
        "1a89eb7dd608a29b68ec21135d680ebb7fb8bc4e4e4e9f4a28afabda55e3b67e",
        "86454777e88d34c0a732f703435e075b40018c45ea58bd9db0fe1fe92f083b71",
        "7c8a4a0ef281dc197ff75d85cbb50feedc738f812e1ece84b1c726e0c9baf593",
        "44302d1ced5f01be60f42ffb76a514db7ebb1b0c85d1eec980dab91999fc530f",
        "aa1f7f9ec43a7da722b048ee496b63dfb60db5ec6e0df5da5a9e163218d8d060",
        "ad3d7c259ac0976de0882b96fedb2e2b4fa4466d8ebc2962da5f0618e04a2a40",
        "658d0bb60cfbd7c85ffcbc964aaed1d2239f89dd4a7d49535a396f028c3bc931",
        "df063c9f830cbb1582c859b60dba51139a3b47c52483b2630efd0100708746e3",
        "4e876c4cf877d9ece4c00d0881b29ab8c07403ad784af13353ebaaea954aac1a",
    ],
}
