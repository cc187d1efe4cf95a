"""A larger beta of a variational autoencoder, and how well its latents follow known factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from flows.experiments import Experiment, Figure, Outcome, Setup, common_settings, trained
from models.shapes import FACTORS
from models.vae import BETA_VAE
from models.variational import TRAVERSALS
from pipeline import plots
from pipeline.evaluation import read_exhibits
from pipeline.pictures import Tile, grid
from pipeline.values import TrainedModel

BETAS = (1.0, 2.0, 4.0, 8.0, 16.0)
SEEDS = (0, 1, 2, 3)

_ROWS = 6  # latents whose traversals are shown, the most active first


@dataclass(frozen=True)
class Found:
    """What the training with one beta and one seed came to, on test pictures."""

    mig: float
    elbo: float
    reconstruction: float
    kl: float
    active: float

    @property
    def cost(self) -> float:
        """The negative bound, in nats."""
        return -self.elbo


def chosen(found: Mapping[float, Sequence[Found]]) -> float:
    """The beta above 1 of the largest mean score."""
    larger = [beta for beta in found if beta > 1]
    return max(larger, key=lambda beta: fmean(one.mig for one in found[beta]))


def judge(found: Mapping[float, Sequence[Found]]) -> tuple[str, bool]:
    """The verdict: at the best larger beta, every seed has to be above every seed at beta 1."""
    best = chosen(found)
    means = {beta: fmean(one.mig for one in some) for beta, some in found.items()}
    least, most = min(one.mig for one in found[best]), max(one.mig for one in found[1.0])
    worse, fair = (fmean(one.reconstruction for one in found[beta]) for beta in (best, 1.0))
    kept, used = (fmean(one.active for one in found[beta]) for beta in (best, 1.0))
    verdict = (
        f"The mean score over {len(found[1.0])} seeds is "
        + ", ".join(f"{mean:.3f} at beta {beta:g}" for beta, mean in means.items())
        + f". The least of any seed at beta {best:g} is {least:.3f}, the largest of any at beta 1 "
        f"{most:.3f}. A picture costs {worse:.1f} nats given its code at beta {best:g}, and "
        f"{fair:.1f} at beta 1; it uses {kept:.3g} latents at beta {best:g} and {used:.3g} at beta "
        f"1, where the factors are {len(FACTORS)}."
    )
    apart = all(one.mig > other.mig for one in found[best] for other in found[1.0])
    return verdict, apart and worse > fair


def run(setup: Setup) -> Outcome:
    """The same net with every beta and every seed, each for as many updates on the same rows."""
    models = {
        beta: [
            trained(setup, BETA_VAE, f"beta {beta:g}, seed {seed}", beta=beta, seed=seed)
            for seed in SEEDS
        ]
        for beta in BETAS
    }
    found = {beta: [_found(model) for model in some] for beta, some in models.items()}
    verdict, holds = judge(found)
    rows = [
        {
            "beta": beta,
            "seed": seed,
            "mutual information gap": one.mig,
            "ELBO": one.elbo,
            "reconstruction, nats": one.reconstruction,
            "KL, nats": one.kl,
            "active latents": one.active,
        }
        for beta, some in found.items()
        for seed, one in zip(SEEDS, some, strict=True)
    ]
    every = [model for some in models.values() for model in some]
    figures = [_scores(found), _costs(found)]
    figures += [_traversals(models[beta], found[beta], beta) for beta in (1.0, chosen(found))]
    return Outcome(verdict, holds, rows, figures, common_settings(every))


def _found(model: TrainedModel) -> Found:
    numbers = model.metrics
    return Found(
        mig=numbers["mig"],
        elbo=numbers["elbo"],
        reconstruction=numbers["reconstruction"],
        kl=numbers["kl"],
        active=numbers["active_units"],
    )


def _scores(found: Mapping[float, Sequence[Found]]) -> Figure:
    betas = list(found)
    series = {
        f"seed {seed}": (betas, [found[beta][place].mig for beta in betas])
        for place, seed in enumerate(SEEDS)
    }
    series["mean"] = (betas, [fmean(one.mig for one in found[beta]) for beta in betas])
    return Figure(
        "Mutual information gap between latents and the factors of test pictures over beta: 1 is "
        "each factor in a latent of its own.",
        plots.lines(
            "score",
            series,
            f"Mutual information gap of {len(SEEDS)} seeds and their mean over {len(betas)} betas",
            xlabel="beta",
            ylabel="mutual information gap",
            log_x=True,
        ),
    )


def _costs(found: Mapping[float, Sequence[Found]]) -> Figure:
    betas = list(found)
    series = {
        name: (betas, [fmean(getattr(one, term) for one in found[beta]) for beta in betas])
        for name, term in (("-ELBO", "cost"), ("reconstruction", "reconstruction"), ("KL", "kl"))
    }
    return Figure(
        "What a test picture costs over beta, in nats, the mean over seeds: its reconstruction and "
        "the divergence of its code, whose sum is the negative ELBO.",
        plots.lines(
            "costs",
            series,
            f"Negative ELBO and its two terms over {len(betas)} betas",
            xlabel="beta",
            ylabel="nats per picture",
            log_x=True,
        ),
    )


def _traversals(models: Sequence[TrainedModel], found: Sequence[Found], beta: float) -> Figure:
    """Of the seed of the best score at that beta."""
    best = max(range(len(found)), key=lambda place: found[place].mig)
    exhibits = read_exhibits(models[best].folder)
    assert exhibits is not None
    rows = [
        [Tile(plots.picture(pixels, 0, 255)) for pixels in row]
        for row in exhibits[0][TRAVERSALS][:_ROWS]
    ]
    names = [f"latent {place}" for place in range(1, len(rows) + 1)]
    return Figure(
        f"Traversals at beta {beta:g}, seed {SEEDS[best]}, its best with a score of "
        f"{found[best].mig:.3f}: in each row one latent goes from -3 to 3 while the others stay at "
        "the code of one test picture; the latents that vary most over pictures come first.",
        grid(rows, f"{len(rows)} latents traversed at beta {beta:g}", names=names),
    )


EXPERIMENT = Experiment(
    name="disentangle",
    title="Disentangled factors by the beta of a variational autoencoder",
    claim="A beta above 1 in the loss of a variational autoencoder makes its latents follow the "
    "factors of its pictures more closely one by one than beta 1 does, whatever the seed, at the "
    "price of less exact reconstructions.",
    paper="Higgins, Matthey, Pal, Burgess, Glorot, Botvinick, Mohamed, Lerchner 2017, beta-VAE: "
    "learning basic visual concepts with a constrained variational framework; score: Chen, Li, "
    "Grosse, Duvenaud 2018, Isolating sources of disentanglement in variational autoencoders",
    run=run,
    varied=("beta", "seed"),
)
