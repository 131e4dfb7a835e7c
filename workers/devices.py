"""Which accelerator this process has."""


def cuda_is_available() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def num_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())
