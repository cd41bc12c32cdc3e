"""From a config to the VAE that it names: files found, config.json read, tensors loaded strictly or drawn.

`describe` is all that identity needs and imports neither torch nor diffusers. `build_network` makes the module.
A checkpoint is a folder in the hub's layout: ``[vae/]config.json`` and ``[vae/]diffusion_pytorch_model.safetensors``.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards_schema.errors import ConfigError, WeightsError
from teachers import files
from teachers.cosmos.config import CHANNELS_OUT, CosmosConfig
from teachers.cosmos.statistics import Statistics

if TYPE_CHECKING:
    import torch

FILES = (f"vae/{files.TENSORS}", files.TENSORS)
"""Where the weights may lie in a repository or folder."""

_STATISTICS = ("latents_mean", "latents_std")


@dataclass(frozen=True, slots=True)
class Description:
    """A network before it is built.

    Attributes:
        arguments: constructor arguments, without statistics; what is not named is the class's default.
        statistics: the latent statistics, or None where the model has none.
        file: the safetensors file; None for random weights.
    """

    arguments: dict[str, Any]
    statistics: Statistics | None
    file: Path | None

    def identity(self) -> dict[str, Any]:
        """JSON for provenance. The class's defaults are part of a random network, so it names diffusers' version."""
        network: dict[str, Any] = {"arguments": self.arguments}
        if self.file is None:
            network["diffusers"] = version("diffusers")
        return {
            "network": network,
            "normalised": self.statistics is not None,
            "statistics": None if self.statistics is None else self.statistics.identity(),
        }


def describe(config: CosmosConfig) -> Description:
    """What `config` names; reads a checkpoint's config.json, not its weights.

    Raises:
        WeightsError: a file is missing, or the checkpoint is of another class or another shape of latents.
        ConfigError: the checkpoint's statistics end before the clip does.
    """
    if config.weights.random is not None:
        default = Statistics("diffusers", CHANNELS_OUT) if config.vae.own_statistics else None
        return Description(config.random_network(), config.given_statistics or default, None)
    file = config.weights.locate(*FILES)
    beside = files.beside(config.weights, file, FILES, "config.json")
    arguments = files.read_json(beside)
    _check_config(config, arguments, beside)
    statistics = config.given_statistics or _checkpoint_statistics(config, arguments, beside)
    if statistics is not None:
        statistics.check_times(config.latents)
    public = {k: v for k, v in arguments.items() if not k.startswith("_") and k not in _STATISTICS}
    return Description(public, statistics, file)


def _check_config(config: CosmosConfig, arguments: dict[str, Any], path: Path) -> None:
    vae = config.vae
    if arguments.get("_class_name") != vae.class_name:
        raise WeightsError(
            f"{path}: model {config.model} is a {vae.class_name}, but this is a {arguments.get('_class_name')!r}"
        )
    # An argument that the file leaves out has the class's default: those of cv8x8x8 and wan, but not cv4x8x8's.
    for name, want in vae.fixed.items():
        default = 8 if name == "temporal_compression_ratio" else want
        if (got := arguments.get(name, default)) != want:
            raise WeightsError(f"{path}: model {config.model} has {name} {want!r}, but this checkpoint has {got!r}")


def _checkpoint_statistics(config: CosmosConfig, arguments: dict[str, Any], path: Path) -> Statistics | None:
    if not config.vae.own_statistics:
        return None
    if not set(_STATISTICS) & set(arguments):
        return Statistics("diffusers", CHANNELS_OUT)
    mean, std = (arguments.get(name) for name in _STATISTICS)
    if mean is None and std is None:
        return None
    try:
        return Statistics("checkpoint", CHANNELS_OUT, tuple(map(float, mean or ())), tuple(map(float, std or ())))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: {error}") from error


def build_network(
    config: CosmosConfig,
    description: Description,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    *,
    decoder: bool = True,
) -> tuple[Any, Statistics | None]:
    """The VAE, and its statistics with their values.

    Torch's global random state is as it was. The module is made on the CPU, never on the meta device: diffusers keeps
    the wavelets of the first AutoencoderKLCosmos for all later ones. So it takes some 0.5 GB of the host for a moment;
    a checkpoint's tensors then go straight to `device`.

    Args:
        config: the VAE, and its weights.
        description: what `describe` says of it.
        dtype: of every tensor; None is float32.
        device: where it goes.
        decoder: whether the half that makes pixels is kept; where not, its tensors are checked and not read.

    Raises:
        WeightsError: tensors are missing, unexpected or of another shape; config.json names an unknown argument.
        ConfigError: `network` makes no network.
    """
    import diffusers
    import torch

    vae_class = getattr(diffusers, config.vae.class_name)
    defaults = inspect.signature(vae_class.__init__).parameters
    if unknown := set(description.arguments) - set(defaults):
        raise WeightsError(f"{config.vae.class_name} of diffusers {diffusers.__version__} knows no {sorted(unknown)}")
    statistics = description.statistics
    if statistics is not None and statistics.mean is None:
        statistics = _default_statistics(defaults)
        statistics.check_times(config.latents)
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator
        try:
            network: torch.nn.Module = vae_class(**description.arguments)
        except Exception as error:
            message = f"{description.arguments} makes no {vae_class.__name__}: {error}"
            if description.file is not None:
                raise WeightsError(f"config.json beside {description.file}: {message}") from error
            raise ConfigError(f"network: {message}") from error
    dtype = dtype or torch.float32
    if description.file is None:
        assert config.weights.random is not None
        files.draw(network, config.weights.random)  # one sequence of numbers: the decoder's come before the encoder's
    whole = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if not decoder:
        network.decoder = network.post_quant_conv = None  # type: ignore[assignment]
    if description.file is not None:
        files.load(network, [description.file], dtype, whole, device)
    torch.nn.Module.to(network, device=device, dtype=dtype)  # ModelMixin.to logs a warning at every cast
    return network.eval().requires_grad_(False), statistics


def _default_statistics(defaults: Any) -> Statistics:
    mean, std = (defaults[name].default for name in _STATISTICS)
    if mean is None or std is None:
        raise WeightsError(
            f"diffusers {version('diffusers')} has no default statistics for this VAE; give latents_mean, latents_std"
        )
    return Statistics("diffusers", CHANNELS_OUT, tuple(mean), tuple(std))
