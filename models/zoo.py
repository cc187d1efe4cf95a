"""The zoo: every recipe by name, and recipes of modules outside this repository."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from models.alexnet import ALEXNET
from models.anomaly_autoencoder import ANOMALY_AUTOENCODER
from models.autoencoder import AUTOENCODER, AUTOENCODER_CONV
from models.cgan import CGAN
from models.cnn import CNN_32_64_1024
from models.denoising_autoencoder import DENOISING_AUTOENCODER
from models.dqn import DQN
from models.dqn_pixels import DQN_PIXELS
from models.errors import UnknownRecipe
from models.fcn import FCN8S
from models.gan import DCGAN
from models.googlenet import GOOGLENET, INCEPTION_MINI
from models.gru import GRU, GRU_CLASSIFIER
from models.lenet5 import LENET5
from models.lstm import LSTM, LSTM_CLASSIFIER, LSTM_MUSIC
from models.mlp import MLP_784_512_10, MLP_BATCHNORM, MLP_DROPOUT
from models.mlp_tabular import MLP_REGRESSION, MLP_TABULAR
from models.perceptron import PERCEPTRON
from models.recipe import Recipe
from models.resnet import PLAIN20, PLAIN56, RESNET18, RESNET20, RESNET56
from models.rnn import RNN, RNN_CLASSIFIER
from models.spam_cnn import SPAM_CNN
from models.transformer import TRANSFORMER
from models.transformer_classifier import TRANSFORMER_CLASSIFIER
from models.transformer_translate import TRANSFORMER_TRANSLATE
from models.unet import UNET
from models.vae import BETA_VAE, VAE_20
from models.xor import XOR

_RECIPES = (
    PERCEPTRON,
    XOR,
    MLP_784_512_10,
    MLP_DROPOUT,
    MLP_BATCHNORM,
    MLP_TABULAR,
    MLP_REGRESSION,
    CNN_32_64_1024,
    LENET5,
    ALEXNET,
    RESNET20,
    RESNET56,
    PLAIN20,
    PLAIN56,
    RESNET18,
    GOOGLENET,
    INCEPTION_MINI,
    SPAM_CNN,
    UNET,
    FCN8S,
    RNN_CLASSIFIER,
    LSTM_CLASSIFIER,
    GRU_CLASSIFIER,
    TRANSFORMER_CLASSIFIER,
    RNN,
    LSTM,
    GRU,
    LSTM_MUSIC,
    TRANSFORMER,
    TRANSFORMER_TRANSLATE,
    AUTOENCODER,
    AUTOENCODER_CONV,
    DENOISING_AUTOENCODER,
    ANOMALY_AUTOENCODER,
    VAE_20,
    BETA_VAE,
    DCGAN,
    CGAN,
    DQN,
    DQN_PIXELS,
)
ZOO: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}


def find(reference: str) -> Recipe:
    """The recipe of a zoo name, or of `package.module:RECIPE` importable from here.

    Raises `UnknownRecipe`.
    """
    if ":" not in reference:
        if reference in ZOO:
            return ZOO[reference]
        raise UnknownRecipe(
            f"no recipe {reference!r}",
            expected=f"{', '.join(ZOO)} or package.module:RECIPE",
            fix="see `fucina list`",
        )
    module_name, _, attribute = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` would have it
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UnknownRecipe(
            f"cannot import {module_name!r} of recipe {reference!r}",
            got=str(error),
            fix="run where the module lies, or put its folder on PYTHONPATH",
        ) from error
    recipe = getattr(module, attribute, None)
    if not isinstance(recipe, Recipe):
        raise UnknownRecipe(
            f"{reference!r} is not a recipe",
            got=type(recipe).__name__ if recipe is not None else f"no {attribute!r} in the module",
            expected="a models.recipe.Recipe",
        )
    return recipe
