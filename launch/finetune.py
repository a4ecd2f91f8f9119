"""Fine-tuning on a person-search set: deepspeed launch/finetune.py --config launch/configs/finetune/prw.yaml

The model of pre-training without its extra heads: NAE. It begins with ImageNet's weights, or with those of
another run: --set start.weights=RUN, and of them --set start.part=backbone or model (default).
Exit codes are those of launch/pretrain.py.
"""

from launch.pretrain import parse_arguments, run
from pipeline.config import load_config
from pipeline.errors import UserError, run_command
from training.distributed import world_size
from training.engine import launched_rank
from training.run_config import RunConfig


def main() -> None:
    arguments = parse_arguments(__doc__)
    config = load_config(RunConfig, arguments.config, arguments.set)
    require_fine_tuning(config, arguments.config)
    run(config, arguments.resume, arguments.allow_change)


def require_fine_tuning(config: RunConfig, path: str) -> None:
    """Raises UserError if something of pre-training is left in the settings."""
    if wrong := config.of_pre_training:
        raise UserError(
            f"{path}: fine-tuning takes scenes alone and has no heads of pre-training: {', '.join(wrong)} "
            "must be 0 or empty. launch/pretrain.py trains with them."
        )


if __name__ == "__main__":
    run_command(main, speaks=lambda: launched_rank() == 0 or world_size() > 1)
